#include "common/fields.h"

#include "common/logging.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace bert
{

namespace
{

auto named(std::string const& name)
{
    return [&name](PluginField const& field) { return name == field.name; };
}

template <typename T>
T single(PluginField const& field)
{
    if (field.length != 1)
    {
        fail("field ", field.name, " has ", field.length, " elements, expected 1");
    }
    T value;
    std::memcpy(&value, field.data, sizeof(value));
    return value;
}

std::string valueOf(PluginField const& field)
{
    switch (field.type)
    {
    case PluginFieldType::kFLOAT32:
    {
        char text[32];
        std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(single<float>(field)));
        return text;
    }
    case PluginFieldType::kINT32:
        return std::to_string(single<int32_t>(field));
    case PluginFieldType::kCHAR:
        return {static_cast<char const*>(field.data), static_cast<size_t>(field.length)};
    default:
        fail("field ", field.name, " has plugin field type ", static_cast<int32_t>(field.type),
            ", which has no text here");
    }
}

} // namespace

FieldReader::FieldReader(nvinfer1::PluginFieldCollection const* fields, std::vector<PluginField> const& known)
{
    if (fields != nullptr)
    {
        mFields.assign(fields->fields, fields->fields + fields->nbFields);
    }
    for (auto const& field : mFields)
    {
        if (field.name == nullptr || std::none_of(known.begin(), known.end(), named(field.name)))
        {
            fail("unknown field ", field.name == nullptr ? "(without a name)" : field.name);
        }
    }
}

bool FieldReader::has(std::string const& name) const
{
    return std::any_of(mFields.begin(), mFields.end(), named(name));
}

float FieldReader::getFloat(std::string const& name) const
{
    return single<float>(find(name, PluginFieldType::kFLOAT32, "float32"));
}

int32_t FieldReader::getInt(std::string const& name) const
{
    return single<int32_t>(find(name, PluginFieldType::kINT32, "int32"));
}

int32_t FieldReader::getFlag(std::string const& name) const
{
    int32_t const flag = has(name) ? getInt(name) : 0;
    if (flag != 0 && flag != 1)
    {
        fail("field ", name, " is ", flag, "; expected 0 or 1");
    }
    return flag;
}

std::string FieldReader::getString(std::string const& name) const
{
    auto const& field = find(name, PluginFieldType::kCHAR, "char (a string)");
    std::string text(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
    return text.substr(0, text.find('\0'));
}

PluginField const& FieldReader::find(
    std::string const& name, PluginFieldType type, char const* typeName) const
{
    auto const field = std::find_if(mFields.begin(), mFields.end(), named(name));
    if (field == mFields.end())
    {
        fail("field ", name, " is missing");
    }
    if (field->type != type)
    {
        fail("field ", name, " has plugin field type ", static_cast<int32_t>(field->type), ", expected ",
            typeName);
    }
    if (field->data == nullptr || field->length < 1)
    {
        fail("field ", name, " is empty");
    }
    return *field;
}

PluginField fieldOf(char const* name, float const& value)
{
    return {name, &value, PluginFieldType::kFLOAT32, 1};
}

PluginField fieldOf(char const* name, int32_t const& value)
{
    return {name, &value, PluginFieldType::kINT32, 1};
}

PluginField fieldOf(char const* name, std::string const& value)
{
    return {name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size())};
}

std::string toText(std::vector<PluginField> const& fields)
{
    std::string text;
    for (auto const& field : fields)
    {
        text += (text.empty() ? "" : " ") + (field.name + ("=" + valueOf(field)));
    }
    return text;
}

} // namespace bert
