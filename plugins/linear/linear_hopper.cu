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

// What a shape takes, in microseconds: fitted by benchmarks/linear_sweep.py to the products of BERT-base and -large, on an
// H100 at its power limit, at up to 37 numbers of rows from 1 to 65536. What is chosen by it takes 0.5 to 1.0 % longer than
// the fastest shape on average, at those sizes and at 24 others, in a later run; benchmarks/linear_h100.md has every size.
struct Costs
{
    float start;    // to start and end
    float tile;     // for each tile, to begin and store it
    float gelu;     // for each tile, for GELU
    float step;     // for each stage of k, if one block runs
    float crowding; // as a share of it, how much longer if all multiprocessors are busy
};

constexpr Costs kHALF_COSTS[] = {
    {1.488F, 1.089F, 0.762F, 0.206F, 0.856F}, // 64x64 split
    {1.702F, 0.000F, 0.509F, 0.155F, 0.900F}, // 64x64
    {1.517F, 0.000F, 0.561F, 0.188F, 1.097F}, // 64x96
    {1.305F, 0.127F, 0.684F, 0.173F, 0.450F}, // 64x128
    {1.070F, 1.009F, 0.277F, 0.171F, 0.866F}, // 128x96
    {0.562F, 1.095F, 0.545F, 0.269F, 0.500F}, // 128x128
    {1.111F, 1.043F, 0.660F, 0.260F, 0.500F}, // 128x128, multicast
    {0.387F, 1.443F, 0.947F, 0.380F, 0.519F}, // 128x192
    {0.298F, 1.833F, 0.982F, 0.492F, 0.583F}, // 128x256
    {0.948F, 1.504F, 0.510F, 0.299F, 0.550F}, // 192x96, multicast
    {0.281F, 1.442F, 0.791F, 0.402F, 0.477F}, // 192x128
    {0.705F, 1.624F, 0.705F, 0.527F, 0.650F}, // 192x192
    {1.374F, 0.676F, 0.594F, 0.170F, 0.850F}, // 96x128, W first
    {1.514F, 0.944F, 0.697F, 0.197F, 0.550F}, // 96x128, W first, multicast
    {0.652F, 1.353F, 0.729F, 0.316F, 0.550F}, // 160x128, W first
    {0.370F, 1.770F, 0.823F, 0.422F, 0.477F}, // 208x128, W first
    {0.081F, 2.081F, 0.933F, 0.424F, 0.511F}, // 144x192, W first
    {0.274F, 2.073F, 1.169F, 0.449F, 0.469F}, // 112x256, W first
    {1.787F, 2.049F, 1.175F, 0.479F, 1.050F}, // 160x256, W first
    {1.496F, 0.261F, 0.395F, 0.294F, 0.395F}, // 128x128 in turn
    {3.580F, 0.000F, 0.975F, 0.298F, 0.850F}, // 128x192 in turn
    {0.868F, 0.531F, 0.543F, 0.337F, 0.255F}, // 64x256 in turn
    {2.471F, 0.000F, 0.653F, 0.349F, 0.572F}, // 176x128 in turn, W first
};
constexpr Costs kE4M3_COSTS[] = {
    {2.132F, 0.446F, 0.380F, 0.130F, 2.000F}, // 64x64 split
    {1.629F, 0.044F, 0.259F, 0.142F, 1.200F}, // 64x64
    {1.625F, 0.205F, 0.424F, 0.157F, 1.550F}, // 64x96
    {1.542F, 0.330F, 0.290F, 0.104F, 1.250F}, // 64x128
    {1.454F, 0.785F, 0.485F, 0.102F, 2.000F}, // 128x96
    {1.057F, 0.923F, 0.306F, 0.240F, 0.582F}, // 128x128
    {1.551F, 1.079F, 0.277F, 0.220F, 0.600F}, // 128x128, multicast
    {0.819F, 1.894F, 0.351F, 0.340F, 0.516F}, // 128x192
    {0.441F, 2.315F, 0.415F, 0.575F, 0.371F}, // 128x256
    {1.624F, 1.579F, 0.727F, 0.184F, 1.200F}, // 192x96, multicast
    {0.578F, 1.628F, 0.163F, 0.427F, 0.334F}, // 192x128
    {0.583F, 2.635F, 0.127F, 0.595F, 0.400F}, // 192x192
    {1.476F, 0.731F, 0.494F, 0.136F, 1.200F}, // 96x128, W first
    {1.601F, 0.956F, 0.510F, 0.178F, 0.600F}, // 96x128, W first, multicast
    {1.321F, 1.427F, 0.599F, 0.261F, 0.700F}, // 160x128, W first
    {1.073F, 1.895F, 0.861F, 0.384F, 0.500F}, // 208x128, W first
    {1.226F, 1.967F, 0.615F, 0.431F, 0.350F}, // 144x192, W first
    {1.295F, 1.924F, 0.914F, 0.418F, 0.500F}, // 112x256, W first
    {1.215F, 2.614F, 0.723F, 0.608F, 0.500F}, // 160x256, W first
    {1.283F, 0.678F, 0.366F, 0.384F, 0.000F}, // 128x128 in turn
    {1.938F, 0.899F, 0.882F, 0.482F, 0.049F}, // 128x192 in turn
    {1.182F, 0.567F, 0.327F, 0.406F, 0.000F}, // 64x256 in turn
    {1.668F, 0.809F, 1.018F, 0.484F, 0.000F}, // 176x128 in turn, W first
};
constexpr Costs kINT8_COSTS[] = {
    {2.012F, 0.604F, 0.356F, 0.141F, 1.850F}, // 64x64 split
    {1.614F, 0.056F, 0.266F, 0.144F, 1.150F}, // 64x64
    {1.577F, 0.197F, 0.393F, 0.166F, 1.550F}, // 64x96
    {1.589F, 0.298F, 0.303F, 0.106F, 1.300F}, // 64x128
    {1.636F, 0.776F, 0.477F, 0.105F, 1.850F}, // 128x96
    {1.183F, 1.105F, 0.272F, 0.226F, 0.561F}, // 128x128
    {1.448F, 1.120F, 0.266F, 0.220F, 0.536F}, // 128x128, multicast
    {1.112F, 1.892F, 0.385F, 0.308F, 0.550F}, // 128x192
    {0.807F, 2.746F, 0.401F, 0.515F, 0.321F}, // 128x256
    {1.642F, 1.634F, 0.659F, 0.189F, 1.000F}, // 192x96, multicast
    {0.928F, 1.574F, 0.252F, 0.406F, 0.298F}, // 192x128
    {1.004F, 2.457F, 0.191F, 0.565F, 0.350F}, // 192x192
    {1.681F, 0.737F, 0.428F, 0.142F, 1.072F}, // 96x128, W first
    {1.847F, 1.038F, 0.397F, 0.177F, 0.500F}, // 96x128, W first, multicast
    {1.453F, 1.310F, 0.471F, 0.246F, 0.750F}, // 160x128, W first
    {1.480F, 1.734F, 0.950F, 0.353F, 0.550F}, // 208x128, W first
    {1.436F, 1.982F, 0.476F, 0.376F, 0.450F}, // 144x192, W first
    {1.751F, 1.828F, 0.911F, 0.428F, 0.485F}, // 112x256, W first
    {1.691F, 2.671F, 0.785F, 0.578F, 0.450F}, // 160x256, W first
    {1.445F, 0.671F, 0.249F, 0.374F, 0.000F}, // 128x128 in turn
    {1.993F, 0.926F, 1.102F, 0.484F, 0.000F}, // 128x192 in turn
    {1.287F, 0.565F, 0.331F, 0.437F, 0.000F}, // 64x256 in turn
    {1.985F, 0.760F, 0.827F, 0.464F, 0.000F}, // 176x128 in turn, W first
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
    int64_t const tileRows = divideUp(a.rows, shape.rows * shape.blockRows) * shape.blockRows;
    int64_t const tileColumns = divideUp(a.out, shape.columns * shape.blockColumns) * shape.blockColumns;
    int64_t const blocks = tileRows * tileColumns * splits;
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
    sizes[3] = found.blockRows;
    sizes[4] = found.blockColumns;
    sizes[5] = found.mostSplits;
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
