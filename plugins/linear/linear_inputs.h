// Checks of x and weight that the plugins with a linear layer share. Each throws a PluginError that names the wrong value.
#pragma once

#include "common/checks.h"
#include "common/tensorrt_api.h"

namespace bert
{

bool isLinearType(DataType type); // fp16 or bf16, which a linear layer without scales takes

// Both fp16 or bf16; with a scale both int8 or fp8.
void checkLinearTypes(DataType x, DataType weight, float xScale);

// An input that is fp32 where x has 8 bits.
void checkFp32BesideEightBits(char const* name, DataType type, DataType x);

// [..., K] and [N, K], and no more rows and columns than one kernel can be launched for.
void checkLinearShapes(Dims const& x, Dims const& weight);

// An input [N], one value for each output channel.
void checkChannels(char const* name, Dims const& channels, Dims const& weight);

// The current GPU has a kernel for x in 8 bits. Where there is no GPU, the one that the plan will run on is not known.
void checkLinearKernel(DataType x);

} // namespace bert
