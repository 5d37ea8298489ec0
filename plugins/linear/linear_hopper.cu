// Which shape of tile the linear layer takes on Hopper.
#include "common/capability.h"
#include "common/early_launch.cuh"
#include "common/element.cuh"
#include "linear/linear_hopper_shapes.h"

#include <algorithm>
#include <limits>

namespace bert
{

namespace
{

// What a shape takes, in microseconds.
struct Costs
{
    float start;    // to start and end
    float tile;     // for each tile, to begin and store it
    float gelu;     // for each tile, for GELU
    float step;     // for each stage of k, if one block runs
    float crowding; // as a share of it, how much longer if all multiprocessors are busy
};

constexpr Costs kHALF_COSTS[] = {
    {1.086F, 1.292F, 0.644F, 0.201F, 1.000F}, // 64x64 split
    {1.584F, 0.000F, 0.401F, 0.158F, 0.850F}, // 64x64
    {1.424F, 0.093F, 0.394F, 0.174F, 1.100F}, // 64x96
    {1.088F, 0.291F, 0.639F, 0.178F, 0.350F}, // 64x128
    {0.641F, 1.366F, 0.683F, 0.196F, 0.550F}, // 64x192
    {0.581F, 1.327F, 0.305F, 0.192F, 0.650F}, // 128x96
    {0.032F, 1.379F, 0.776F, 0.293F, 0.400F}, // 128x128
    {0.000F, 1.640F, 0.202F, 0.293F, 0.650F}, // 128x144
    {0.000F, 1.565F, 0.890F, 0.376F, 0.656F}, // 128x192
    {0.000F, 1.847F, 1.183F, 0.474F, 0.730F}, // 128x256
    {0.000F, 1.627F, 0.486F, 0.287F, 0.650F}, // 192x96
    {0.000F, 1.785F, 0.919F, 0.371F, 0.650F}, // 192x128
    {0.000F, 2.220F, 0.872F, 0.513F, 0.850F}, // 192x192
    {1.502F, 0.267F, 0.763F, 0.288F, 0.445F}, // 128x128 in turn
    {2.374F, 0.069F, 0.842F, 0.340F, 0.850F}, // 128x192 in turn
    {1.026F, 0.275F, 0.689F, 0.314F, 0.345F}, // 64x256 in turn
    {2.098F, 0.078F, 0.688F, 0.277F, 0.598F}, // 64x256 in turn, multicast
};
constexpr Costs kE4M3_COSTS[] = {
    {1.187F, 1.340F, 0.412F, 0.137F, 2.000F}, // 64x64 split
    {1.378F, 0.244F, 0.224F, 0.155F, 0.900F}, // 64x64
    {1.460F, 0.258F, 0.509F, 0.156F, 1.701F}, // 64x96
    {1.385F, 0.442F, 0.348F, 0.120F, 0.950F}, // 64x128
    {1.311F, 1.080F, 0.386F, 0.124F, 1.234F}, // 64x192
    {1.232F, 1.007F, 0.481F, 0.144F, 1.100F}, // 128x96
    {0.745F, 1.264F, 0.365F, 0.255F, 0.446F}, // 128x128
    {0.882F, 1.639F, 0.503F, 0.233F, 0.866F}, // 128x144
    {0.517F, 1.758F, 0.517F, 0.386F, 0.500F}, // 128x192
    {0.000F, 2.108F, 0.563F, 0.677F, 0.300F}, // 128x256
    {0.779F, 1.903F, 0.578F, 0.222F, 0.950F}, // 192x96
    {0.491F, 1.686F, 0.306F, 0.444F, 0.350F}, // 192x128
    {0.263F, 2.291F, 0.333F, 0.638F, 0.450F}, // 192x192
    {1.152F, 0.842F, 0.322F, 0.374F, 0.000F}, // 128x128 in turn
    {1.391F, 0.807F, 0.850F, 0.513F, 0.150F}, // 128x192 in turn
    {1.154F, 0.669F, 0.377F, 0.389F, 0.000F}, // 64x256 in turn
    {1.497F, 0.611F, 0.373F, 0.377F, 0.047F}, // 64x256 in turn, multicast
};
constexpr Costs kINT8_COSTS[] = {
    {1.195F, 1.356F, 0.403F, 0.136F, 2.000F}, // 64x64 split
    {1.378F, 0.232F, 0.257F, 0.157F, 0.850F}, // 64x64
    {1.497F, 0.230F, 0.359F, 0.155F, 1.550F}, // 64x96
    {1.422F, 0.436F, 0.355F, 0.115F, 0.900F}, // 64x128
    {1.593F, 1.087F, 0.418F, 0.115F, 1.262F}, // 64x192
    {1.214F, 1.033F, 0.393F, 0.157F, 1.050F}, // 128x96
    {1.073F, 1.159F, 0.394F, 0.249F, 0.383F}, // 128x128
    {1.080F, 1.515F, 0.528F, 0.230F, 0.900F}, // 128x144
    {0.833F, 1.751F, 0.568F, 0.351F, 0.450F}, // 128x192
    {0.289F, 2.213F, 0.669F, 0.586F, 0.200F}, // 128x256
    {0.937F, 1.807F, 0.478F, 0.238F, 0.700F}, // 192x96
    {0.818F, 1.677F, 0.431F, 0.410F, 0.300F}, // 192x128
    {0.846F, 2.201F, 0.415F, 0.560F, 0.400F}, // 192x192
    {1.468F, 0.852F, 0.344F, 0.340F, 0.000F}, // 128x128 in turn
    {1.716F, 0.873F, 0.873F, 0.532F, 0.000F}, // 128x192 in turn
    {1.333F, 0.662F, 0.387F, 0.405F, 0.000F}, // 64x256 in turn
    {1.826F, 0.577F, 0.375F, 0.348F, 0.050F}, // 64x256 in turn, multicast
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
    bool const canSplit = shape.mostSplits == 1
                              ? splits == 1
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

bool hopperTakes(LinearArguments const& a)
{
    size_t const size = bytesOf(a.type);
    size_t const outSize = size == 2 ? 2 : bytesOf(a.outputType);
    return a.in * size % 16 == 0 && a.out * outSize % 16 == 0 && a.rows <= INT32_MAX && isAligned16(a.x)
           && isAligned16(a.weight) && isAligned16(a.bias) && isAligned16(a.y) && isAligned16(a.weightScales);
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
            float const time = estimate(arguments, shape, costsOf(arguments.type)[i], splits, multiprocessors);
            if (time < least)
            {
                choice = {i, splits};
                least = time;
            }
        }
    }
    return status;
}

cudaError_t launchLinearHopper(LinearArguments const& arguments, LinearChoice const& choice, cudaStream_t stream)
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
