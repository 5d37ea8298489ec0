// The linear layer's launchers as C functions, for benchmarks/linear_sweep.py, benchmarks/linear_mma_sync.py and
// benchmarks/ladders.py, which load them from a shared library (target linear_functions) and compare with PyTorch in one
// process. Those of single shapes exist where the kernels for Hopper do.
#include "linear/linear_ladder.h"

#include <iterator>

#define BERT_EXPORT extern "C" __attribute__((visibility("default")))

using namespace bert;

// As LinearArguments.
struct LinearCall
{
    void const* x;
    void const* weight;
    void const* bias;
    void* y;
    float const* weightScales;
    int64_t rows;
    int32_t in;
    int32_t out;
    int32_t gelu;
    int32_t type; // ElementType
    int32_t outputType;
    float xScale;
    float outputScale;
};

namespace
{

LinearArguments makeArguments(LinearCall const& call)
{
    LinearArguments a{};
    a.x = call.x;
    a.weight = call.weight;
    a.bias = call.bias;
    a.y = call.y;
    a.rows = call.rows;
    a.in = call.in;
    a.out = call.out;
    a.gelu = call.gelu != 0;
    a.type = static_cast<ElementType>(call.type);
    a.constantWeight = true;
    a.weightScales = call.weightScales;
    a.xScale = call.xScale;
    a.outputType = static_cast<ElementType>(call.outputType);
    a.outputScale = call.outputScale;
    return a;
}

} // namespace

// All return a cudaError_t but for what describes shapes.
BERT_EXPORT int32_t linearLaunch(LinearCall const* call, void* stream)
{
    return launchLinear(makeArguments(*call), static_cast<cudaStream_t>(stream));
}
BERT_EXPORT int32_t linearLaunchTensor(LinearCall const* call, void* stream)
{
    return launchLinearTensor(makeArguments(*call), static_cast<cudaStream_t>(stream));
}
// The kernels of linear_ladder.h. One that does not take the call answers cudaErrorInvalidValue.
BERT_EXPORT int32_t linearRungs()
{
    return static_cast<int32_t>(std::size(kLINEAR_RUNGS));
}
BERT_EXPORT char const* linearRungName(int32_t rung)
{
    return kLINEAR_RUNGS[rung].name;
}
BERT_EXPORT int32_t linearLaunchRung(LinearCall const* call, int32_t rung, void* stream)
{
    LinearArguments const arguments = makeArguments(*call);
    Capability gpu;
    cudaError_t const status = currentCapability(gpu);
    if (status != cudaSuccess)
    {
        return status;
    }
    return kLINEAR_RUNGS[rung].suits(arguments, gpu)
               ? kLINEAR_RUNGS[rung].launch(arguments, static_cast<cudaStream_t>(stream))
               : cudaErrorInvalidValue;
}

#if defined(BERT_HOPPER)

BERT_EXPORT int32_t linearShapes(int32_t type)
{
    return countLinearHopperShapes(static_cast<ElementType>(type));
}
BERT_EXPORT char const* linearShapeName(int32_t type, int32_t shape)
{
    return nameLinearHopperShape(static_cast<ElementType>(type), shape);
}
// Rows and columns of a tile, elements of k in a stage, rows and columns of blocks of a cluster, most blocks of a split.
BERT_EXPORT void linearShapeSizes(int32_t type, int32_t shape, int32_t* sizes)
{
    describeLinearHopperShape(static_cast<ElementType>(type), shape, sizes);
}
BERT_EXPORT int32_t linearChoice(LinearCall const* call, int32_t* shape, int32_t* splits)
{
    LinearChoice choice{};
    cudaError_t const status = chooseLinearHopper(makeArguments(*call), choice);
    *shape = choice.shape;
    *splits = choice.splits;
    return status;
}
BERT_EXPORT int32_t linearLaunchShape(LinearCall const* call, int32_t shape, int32_t splits, void* stream)
{
    return launchLinearHopper(makeArguments(*call), {shape, splits}, static_cast<cudaStream_t>(stream));
}

#endif
