// Plugin fields: typed attributes with a name. They come from add_plugin_v3, from the attributes of an ONNX node or
// from a plan, and are checked in the same way each time.
#pragma once

#include "common/tensorrt_api.h"

#include <string>
#include <vector>

namespace bert
{

// Reads the fields that a plugin is created from. Every problem is thrown as a PluginError that names the field.
class FieldReader
{
public:
    // Refuses fields whose names are not in `known`: a misspelt name would otherwise silently mean the default.
    FieldReader(nvinfer1::PluginFieldCollection const* fields, std::vector<PluginField> const& known);

    bool has(std::string const& name) const;
    float getFloat(std::string const& name) const;        // kFLOAT32, one element
    int32_t getInt(std::string const& name) const;        // kINT32, one element
    int32_t getFlag(std::string const& name) const;       // the same, 0 or 1; 0 where it is not given
    std::string getString(std::string const& name) const; // kCHAR, with or without a final zero

private:
    PluginField const& find(std::string const& name, PluginFieldType type, char const* typeName) const;

    std::vector<PluginField> mFields;
};

// A field to serialize. It refers to `value`, which must live as long as the field is used.
PluginField fieldOf(char const* name, float const& value);
PluginField fieldOf(char const* name, int32_t const& value);
PluginField fieldOf(char const* name, std::string const& value);

// "epsilon=9.99999996e-13 kernel=fast": name=value pairs, separated by blanks. A float32 has the nine digits from
// which the same float32 is read again. Throws a PluginError for fields of other types.
std::string toText(std::vector<PluginField> const& fields);

} // namespace bert
