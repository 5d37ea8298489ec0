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

constexpr Costs kHALF_COSTS[17] = {};
constexpr Costs kE4M3_COSTS[17] = {};
constexpr Costs kINT8_COSTS[17] = {};

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
    // Clusters that wait for room cost more than was gained.
    if (!canTake(a, shape, splits) || (splits > 1 && blocks > multiprocessors))
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
