// Which shape of tile the linear layer takes on Hopper.
#include "common/capability.h"
#include "common/element.cuh"
#include "common/programmatic_dependent_launch.cuh"
#include "linear/linear_hopper_shapes.h"

#include <algorithm>
#include <limits>

namespace bert
{

namespace
{

// What a shape takes, in microseconds: fitted by benchmarks/linear_sweep.py to the products of BERT-base and -large with 37
// numbers of rows from 1 to 65536, on an H200 and an H100 at their power limit. What is chosen by it takes 0.5 to 0.8 %
// longer than the fastest shape on average, at those sizes and at 24 others; benchmarks/linear_h200.md and benchmarks/linear_h100.md
// have every size.
struct Costs
{
    float start;    // to start and end
    float tile;     // for each tile, to begin and store it
    float gelu;     // for each tile, for GELU
    float step;     // for each stage of k, if one block runs
    float crowding; // as a share of it, how much longer if all multiprocessors are busy
};

constexpr Costs kHALF_COSTS[] = {
    {1.441F, 1.123F, 0.700F, 0.209F, 0.899F}, // 64x64 split
    {1.640F, 0.000F, 0.459F, 0.167F, 0.850F}, // 64x64
    {1.570F, 0.006F, 0.451F, 0.186F, 1.050F}, // 64x96
    {1.277F, 0.161F, 0.638F, 0.175F, 0.400F}, // 64x128
    {0.938F, 0.955F, 0.657F, 0.200F, 0.561F}, // 64x192
    {0.787F, 1.263F, 0.256F, 0.187F, 0.659F}, // 128x96
    {0.323F, 1.211F, 0.651F, 0.278F, 0.450F}, // 128x128
    {0.000F, 1.945F, 0.194F, 0.291F, 0.550F}, // 128x144
    {0.000F, 1.656F, 0.905F, 0.385F, 0.539F}, // 128x192
    {0.000F, 1.826F, 1.158F, 0.503F, 0.577F}, // 128x256
    {0.000F, 1.791F, 0.241F, 0.289F, 0.600F}, // 192x96
    {0.000F, 1.625F, 0.866F, 0.396F, 0.522F}, // 192x128
    {0.000F, 1.973F, 0.838F, 0.578F, 0.600F}, // 192x192
    {1.241F, 0.361F, 0.547F, 0.312F, 0.310F}, // 128x128 in turn
    {2.285F, 0.046F, 0.885F, 0.359F, 0.622F}, // 128x192 in turn
    {1.022F, 0.407F, 0.592F, 0.332F, 0.250F}, // 64x256 in turn
    {2.092F, 0.091F, 0.564F, 0.291F, 0.450F}, // 64x256 in turn, multicast
};
constexpr Costs kE4M3_COSTS[] = {
    {1.341F, 1.248F, 0.396F, 0.134F, 2.000F}, // 64x64 split
    {1.468F, 0.172F, 0.240F, 0.152F, 1.000F}, // 64x64
    {1.312F, 0.302F, 0.406F, 0.163F, 1.350F}, // 64x96
    {1.461F, 0.377F, 0.304F, 0.117F, 1.050F}, // 64x128
    {1.489F, 0.881F, 0.382F, 0.120F, 1.450F}, // 64x192
    {1.286F, 1.033F, 0.479F, 0.133F, 1.250F}, // 128x96
    {0.906F, 1.148F, 0.372F, 0.257F, 0.446F}, // 128x128
    {0.988F, 1.765F, 0.507F, 0.195F, 1.200F}, // 128x144
    {0.764F, 1.655F, 0.452F, 0.366F, 0.518F}, // 128x192
    {0.269F, 2.020F, 0.596F, 0.643F, 0.350F}, // 128x256
    {1.013F, 1.768F, 0.447F, 0.204F, 1.150F}, // 192x96
    {0.703F, 1.567F, 0.281F, 0.432F, 0.336F}, // 192x128
    {0.481F, 1.947F, 0.369F, 0.648F, 0.400F}, // 192x192
    {1.270F, 0.703F, 0.372F, 0.380F, 0.000F}, // 128x128 in turn
    {1.807F, 0.714F, 1.096F, 0.527F, 0.045F}, // 128x192 in turn
    {1.180F, 0.751F, 0.428F, 0.389F, 0.000F}, // 64x256 in turn
    {1.714F, 0.473F, 0.393F, 0.384F, 0.048F}, // 64x256 in turn, multicast
};
constexpr Costs kINT8_COSTS[] = {
    {1.328F, 1.269F, 0.400F, 0.136F, 1.950F}, // 64x64 split
    {1.458F, 0.178F, 0.257F, 0.154F, 0.950F}, // 64x64
    {1.444F, 0.306F, 0.367F, 0.166F, 1.300F}, // 64x96
    {1.492F, 0.374F, 0.319F, 0.114F, 1.050F}, // 64x128
    {1.570F, 0.921F, 0.354F, 0.115F, 1.377F}, // 64x192
    {1.312F, 1.065F, 0.387F, 0.134F, 1.147F}, // 128x96
    {1.159F, 1.099F, 0.330F, 0.224F, 0.500F}, // 128x128
    {1.124F, 1.734F, 0.511F, 0.196F, 1.050F}, // 128x144
    {1.161F, 1.778F, 0.496F, 0.321F, 0.514F}, // 128x192
    {0.777F, 2.517F, 0.582F, 0.485F, 0.366F}, // 128x256
    {1.173F, 1.657F, 0.499F, 0.205F, 1.000F}, // 192x96
    {1.165F, 1.652F, 0.372F, 0.374F, 0.350F}, // 192x128
    {1.042F, 2.201F, 0.418F, 0.564F, 0.400F}, // 192x192
    {1.395F, 0.755F, 0.350F, 0.347F, 0.000F}, // 128x128 in turn
    {2.108F, 0.961F, 1.043F, 0.482F, 0.000F}, // 128x192 in turn
    {1.417F, 0.629F, 0.350F, 0.362F, 0.000F}, // 64x256 in turn
    {2.035F, 0.514F, 0.369F, 0.355F, 0.041F}, // 64x256 in turn, multicast
};

Costs const* costsOf(ElementType type)
{
    switch (type)
    {
    case ElementType::kE4M3:
        return kE4M3_COSTS;
    case ElementType::kINT8:
        return kINT8_COSTS;
    default:
        return kHALF_COSTS;
    }
}

size_t bytesOf(ElementType type)
{
    return type == ElementType::kHALF || type == ElementType::kBF16 ? 2 : 1;
}

LinearHopperShapes shapesOf(ElementType type)
{
    switch (type)
    {
    case ElementType::kHALF:
        return linearHopperShapesHalf();
    case ElementType::kBF16:
        return linearHopperShapesBf16();
    case ElementType::kE4M3:
        return linearHopperShapesE4m3();
    default:
        return linearHopperShapesInt8();
    }
}

// Also that every block of a split has something to do.
bool canTake(LinearArguments const& a, LinearHopperShape const& shape, int32_t splits)
{
    int64_t const steps = divideUp(a.in, shape.depth);
    bool const canSplit = shape.mostSplits == 1 ? splits == 1
                                                : splits > 1 && splits <= shape.mostSplits
                                                      && divideUp(steps, splits) * (splits - 1) < steps;
    return canSplit && a.in % shape.multiple == 0;
}

// Infinite where that cannot be.
float estimate(LinearArguments const& a, LinearHopperShape const& shape, Costs const& costs, int32_t splits,
    int multiprocessors)
{
    int64_t const steps = divideUp(divideUp(a.in, shape.depth), splits);
    int64_t const rowTiles = divideUp(a.rows, shape.rows * shape.multicast) * shape.multicast;
    int64_t const blocks = rowTiles * divideUp(a.out, shape.columns) * splits;
    // Clusters do not always find room on all multiprocessors, and those that wait cost more than was gained: 128 rows,
    // 4096 to 1024, four splits, which are 128 blocks: 9.5 us, three 6.4.
    if (!canTake(a, shape, splits) || (splits > 1 && blocks > multiprocessors * 3 / 4))
    {
        return std::numeric_limits<float>::infinity();
    }
    auto const rounds = static_cast<float>(divideUp(blocks, multiprocessors));
    float const busy = std::min(1.0F, static_cast<float>(blocks) / static_cast<float>(multiprocessors));
    float const step = costs.step * (1.0F + costs.crowding * busy);
    float const tile = costs.tile + (a.gelu ? costs.gelu : 0.0F);
    return costs.start + rounds * (tile + static_cast<float>(steps) * step);
}

} // namespace

bool suitsHopperKernel(LinearArguments const& a)
{
    size_t const size = bytesOf(a.type);
    size_t const outSize = size == 2 ? 2 : bytesOf(a.outputType);
    int64_t const tiles = divideUp(a.rows, 64) * divideUp(a.out, 64); // at most
    return a.in * size % 16 == 0 && a.out * outSize % 16 == 0 && tiles <= INT32_MAX / 64 && isAligned16(a.x)
           && isAligned16(a.weight) && isAligned16(a.bias) && isAligned16(a.y) && isAligned16(a.weightScales)
           && isAligned16(a.outputFactors);
}

int32_t countLinearHopperShapes(ElementType type)
{
    return shapesOf(type).count;
}

char const* nameLinearHopperShape(ElementType type, int32_t shape)
{
    return shapesOf(type).shapes[shape].name;
}

void describeLinearHopperShape(ElementType type, int32_t shape, int32_t* sizes)
{
    LinearHopperShape const& found = shapesOf(type).shapes[shape];
    sizes[0] = found.rows;
    sizes[1] = found.columns;
    sizes[2] = found.depth;
    sizes[3] = found.multicast;
    sizes[4] = found.mostSplits;
}

cudaError_t chooseLinearHopper(LinearArguments const& arguments, LinearChoice& choice)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    LinearHopperShapes const list = shapesOf(arguments.type);
    float least = std::numeric_limits<float>::infinity();
    for (int32_t i = 0; i < list.count; ++i)
    {
        LinearHopperShape const& shape = list.shapes[i];
        for (int32_t splits = std::min(shape.mostSplits, 2); splits <= shape.mostSplits; ++splits)
        {
            float const time
                = estimate(arguments, shape, costsOf(arguments.type)[i], splits, multiprocessors);
            if (time < least)
            {
                choice = {i, splits};
                least = time;
            }
        }
    }
    return status;
}

cudaError_t launchLinearHopper(
    LinearArguments const& arguments, LinearChoice const& choice, cudaStream_t stream)
{
    int multiprocessors = 0;
    cudaError_t const status = countMultiprocessors(multiprocessors);
    if (status != cudaSuccess)
    {
        return status;
    }
    LinearHopperShape const& shape = shapesOf(arguments.type).shapes[choice.shape];
    return canTake(arguments, shape, choice.splits)
               ? shape.launch(arguments, choice.splits, multiprocessors, stream)
               : cudaErrorInvalidValue;
}

cudaError_t launchLinearHopper(LinearArguments const& arguments, cudaStream_t stream)
{
    LinearChoice choice{};
    cudaError_t const status = chooseLinearHopper(arguments, choice);
    return status == cudaSuccess ? launchLinearHopper(arguments, choice, stream) : status;
}

} // namespace bert
