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

// What a shape takes, in microseconds: fitted by benchmarks/linear_sweep.py to the products of BERT-base and -large with 37
// numbers of rows from 1 to 65536, on an H200 at its power limit (benchmarks/linear_h200.json). At these sizes what is
// chosen takes 0.5 % longer than the fastest shape on average; the page beside that file has every size, and others.
struct Costs
{
    float start;    // to start and end
    float tile;     // for each tile, to begin and store it
    float gelu;     // for each tile, for GELU
    float step;     // for each stage of k, if one block runs
    float crowding; // as a share of it, how much longer if all multiprocessors are busy
};

constexpr Costs kHALF_COSTS[] = {
    {1.251F, 1.176F, 0.694F, 0.202F, 0.899F}, // 64x64 split
    {1.617F, 0.000F, 0.431F, 0.160F, 0.908F}, // 64x64
    {1.352F, 0.224F, 0.457F, 0.187F, 0.950F}, // 64x96
    {1.111F, 0.271F, 0.591F, 0.179F, 0.400F}, // 64x128
    {0.656F, 1.373F, 0.549F, 0.190F, 0.600F}, // 64x192
    {0.499F, 1.437F, 0.238F, 0.197F, 0.600F}, // 128x96
    {0.021F, 1.321F, 0.679F, 0.294F, 0.415F}, // 128x128
    {0.000F, 1.759F, 0.203F, 0.286F, 0.650F}, // 128x144
    {0.000F, 1.563F, 0.945F, 0.364F, 0.703F}, // 128x192
    {0.000F, 1.873F, 1.156F, 0.467F, 0.808F}, // 128x256
    {0.000F, 1.650F, 0.371F, 0.282F, 0.700F}, // 192x96
    {0.000F, 1.240F, 0.974F, 0.391F, 0.650F}, // 192x128
    {0.000F, 2.052F, 0.782F, 0.487F, 0.900F}, // 192x192
    {1.229F, 0.292F, 0.706F, 0.316F, 0.350F}, // 128x128 in turn
    {2.051F, 0.232F, 0.831F, 0.371F, 0.700F}, // 128x192 in turn
    {0.951F, 0.311F, 0.615F, 0.329F, 0.300F}, // 64x256 in turn
    {1.833F, 0.142F, 0.599F, 0.289F, 0.500F}, // 64x256 in turn, multicast
};
constexpr Costs kE4M3_COSTS[] = {
    {1.184F, 1.401F, 0.423F, 0.133F, 2.000F}, // 64x64 split
    {1.415F, 0.221F, 0.241F, 0.155F, 0.900F}, // 64x64
    {1.376F, 0.360F, 0.367F, 0.161F, 1.300F}, // 64x96
    {1.397F, 0.442F, 0.322F, 0.119F, 1.000F}, // 64x128
    {1.346F, 1.061F, 0.371F, 0.119F, 1.450F}, // 64x192
    {1.096F, 1.186F, 0.378F, 0.153F, 1.000F}, // 128x96
    {0.859F, 1.166F, 0.419F, 0.261F, 0.446F}, // 128x128
    {0.707F, 1.903F, 0.473F, 0.232F, 0.850F}, // 128x144
    {0.419F, 1.822F, 0.500F, 0.397F, 0.416F}, // 128x192
    {0.000F, 2.097F, 0.701F, 0.611F, 0.326F}, // 128x256
    {0.743F, 1.904F, 0.414F, 0.231F, 0.900F}, // 192x96
    {0.420F, 1.684F, 0.327F, 0.448F, 0.336F}, // 192x128
    {0.165F, 2.246F, 0.403F, 0.646F, 0.450F}, // 192x192
    {1.144F, 0.870F, 0.370F, 0.381F, 0.000F}, // 128x128 in turn
    {1.247F, 0.877F, 1.105F, 0.551F, 0.050F}, // 128x192 in turn
    {1.168F, 0.776F, 0.375F, 0.390F, 0.000F}, // 64x256 in turn
    {1.590F, 0.646F, 0.420F, 0.380F, 0.049F}, // 64x256 in turn, multicast
};
constexpr Costs kINT8_COSTS[] = {
    {1.202F, 1.408F, 0.405F, 0.133F, 2.000F}, // 64x64 split
    {1.416F, 0.217F, 0.266F, 0.154F, 0.900F}, // 64x64
    {1.400F, 0.368F, 0.335F, 0.160F, 1.300F}, // 64x96
    {1.442F, 0.436F, 0.352F, 0.115F, 1.000F}, // 64x128
    {1.549F, 1.072F, 0.406F, 0.112F, 1.450F}, // 64x192
    {1.341F, 1.210F, 0.358F, 0.143F, 0.947F}, // 128x96
    {1.093F, 1.163F, 0.374F, 0.252F, 0.383F}, // 128x128
    {0.900F, 1.825F, 0.503F, 0.234F, 0.700F}, // 128x144
    {0.792F, 1.863F, 0.628F, 0.363F, 0.450F}, // 128x192
    {0.318F, 2.437F, 0.741F, 0.585F, 0.250F}, // 128x256
    {0.943F, 1.768F, 0.423F, 0.254F, 0.650F}, // 192x96
    {0.785F, 1.795F, 0.407F, 0.414F, 0.300F}, // 192x128
    {0.614F, 2.375F, 0.413F, 0.591F, 0.300F}, // 192x192
    {1.455F, 0.820F, 0.361F, 0.346F, 0.000F}, // 128x128 in turn
    {1.953F, 0.861F, 0.896F, 0.521F, 0.000F}, // 128x192 in turn
    {1.600F, 0.694F, 0.363F, 0.358F, 0.000F}, // 64x256 in turn
    {1.954F, 0.643F, 0.379F, 0.360F, 0.000F}, // 64x256 in turn, multicast
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

bool hopperTakes(LinearArguments const& a)
{
    size_t const size = bytesOf(a.type);
    size_t const outSize = size == 2 ? 2 : bytesOf(a.outputType);
    int64_t const tiles = divideUp(a.rows, 64) * divideUp(a.out, 64); // at most
    return a.in * size % 16 == 0 && a.out * outSize % 16 == 0 && tiles <= INT32_MAX / 64 && isAligned16(a.x)
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
