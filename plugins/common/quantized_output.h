// The fields of plugins that give their result in 8 bits, alone or beside the floating one.
#pragma once

#include "common/checks.h"
#include "common/fields.h"

#include <string>
#include <vector>

namespace bert
{

// outputs (string: y or both; default y): y alone, or y and then y in 8 bits · output_scale (float32): of the output in
// 8 bits, which is round half to even of y / scale, saturated; with outputs y, y has 8 bits if it is given ·
// quantized_type (string: int8 or fp8; default int8): the type of 8 bits (fp8: E4M3) ·
// output_factors (int32: 0 or 1; default 0): 1 where the plugin has an input of that name, fp32 [H]; the output in 8 bits
// is then that of y * output_factors, channel by channel, and the floating one stays y (SmoothQuant)
struct OutputFields
{
    float outputScale{}; // 0: not given
    std::string outputs{"y"};
    std::string quantizedType; // empty: not given
    int32_t outputFactors{};

    static OutputFields read(FieldReader const& fields);
    // Names and types, for a creator's list.
    static std::vector<PluginField> names();

    // Throws PluginError for invalid values.
    void check() const;
    bool hasFactors() const;
    bool hasFloating() const;
    bool hasQuantized() const;
    int32_t count() const;
    DataType quantized() const;
    // The types of the outputs; `floating` is used only if there is a floating one.
    std::vector<DataType> types(DataType floating) const;
    void serialize(std::vector<PluginField>& fields) const;
};

} // namespace bert
