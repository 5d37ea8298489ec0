#include "common/quantized_output.h"

#include "common/logging.h"

namespace bert
{

OutputFields OutputFields::read(FieldReader const& fields)
{
    OutputFields read;
    read.outputScale = fields.has("output_scale") ? fields.getFloat("output_scale") : 0.0F;
    read.outputs = fields.has("outputs") ? fields.getString("outputs") : read.outputs;
    read.quantizedType = fields.has("quantized_type") ? fields.getString("quantized_type") : "";
    read.outputFactors = fields.getFlag("output_factors");
    return read;
}

std::vector<PluginField> OutputFields::names()
{
    return {{"output_scale", nullptr, PluginFieldType::kFLOAT32, 1},
        {"outputs", nullptr, PluginFieldType::kCHAR, 1},
        {"quantized_type", nullptr, PluginFieldType::kCHAR, 1},
        {"output_factors", nullptr, PluginFieldType::kINT32, 1}};
}

void OutputFields::check() const
{
    checkScale("output_scale", outputScale);
    if (outputs != "y" && outputs != "both")
    {
        fail("field outputs is \"", outputs, "\"; expected y or both");
    }
    if (outputs == "both" && !hasQuantized())
    {
        fail("field outputs is \"both\"; give the scale of the output in 8 bits in the field output_scale");
    }
    if (!quantizedType.empty() && quantizedType != "int8" && quantizedType != "fp8")
    {
        fail("field quantized_type is \"", quantizedType, "\"; expected int8 or fp8");
    }
    if (!quantizedType.empty() && !hasQuantized())
    {
        fail("field quantized_type is \"", quantizedType,
            "\", but there is no output_scale; give both or neither");
    }
    if (hasFactors() && !hasQuantized())
    {
        fail("field output_factors is 1, but there is no output_scale; only an output in 8 bits has factors");
    }
}

bool OutputFields::hasFactors() const
{
    return outputFactors == 1;
}

bool OutputFields::hasFloating() const
{
    return outputs == "both" || !hasQuantized();
}

bool OutputFields::hasQuantized() const
{
    return outputScale > 0.0F;
}

int32_t OutputFields::count() const
{
    return outputs == "both" ? 2 : 1;
}

DataType OutputFields::quantized() const
{
    return quantizedType == "fp8" ? DataType::kFP8 : DataType::kINT8;
}

std::vector<DataType> OutputFields::types(DataType floating) const
{
    std::vector<DataType> types;
    if (hasFloating())
    {
        types.push_back(floating);
    }
    if (hasQuantized())
    {
        types.push_back(quantized());
    }
    return types;
}

void OutputFields::serialize(std::vector<PluginField>& fields) const
{
    fields.push_back(fieldOf("output_scale", outputScale));
    fields.push_back(fieldOf("outputs", outputs));
    if (!quantizedType.empty())
    {
        fields.push_back(fieldOf("quantized_type", quantizedType));
    }
    if (hasFactors())
    {
        fields.push_back(fieldOf("output_factors", outputFactors));
    }
}

} // namespace bert
