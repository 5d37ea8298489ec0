// The list of shapes, for any type.
#pragma once

#include "linear/linear_hopper.cuh"
#include "linear/linear_hopper_shapes.h"

#include <iterator>

namespace bert
{

template <typename T, typename Shape>
cudaError_t launchForOutput(LinearArguments const& a, int32_t splits, int multiprocessors, cudaStream_t stream)
{
    if constexpr (sizeof(T) == 2)
    {
        return launchShape<T, T, Shape>(a, splits, multiprocessors, stream);
    }
    else
    {
#ifdef EXPERIMENT
        return a.outputType == ElementType::kHALF ? launchShape<T, __half, Shape>(a, splits, multiprocessors, stream) : launchShape<T, T, Shape>(a, splits, multiprocessors, stream);
#else
        switch (a.outputType)
        {
        case ElementType::kHALF:
            return launchShape<T, __half, Shape>(a, splits, multiprocessors, stream);
        case ElementType::kBF16:
            return launchShape<T, __nv_bfloat16, Shape>(a, splits, multiprocessors, stream);
        default:
            return launchShape<T, T, Shape>(a, splits, multiprocessors, stream);
        }
#endif
    }
}

template <typename T, typename Shape>
constexpr LinearHopperShape makeShape(char const* name)
{
    return {name, launchForOutput<T, Shape>, Shape::kROWS, Shape::kCOLUMNS, Shape::kPANELS * kPANEL<T>,
        Shape::kPANELS == 1 ? 1 : kPANEL<T>, Shape::kSPLITS, Shape::kMULTICAST};
}

template <typename T>
constexpr LinearHopperShape kSHAPES[] = {
    makeShape<T, LinearShape<Sharing::kROWS, 64, 64, 2, 6, 1>>("64x64"),
    makeShape<T, LinearShape<Sharing::kROWS, 64, 96, 2, 5>>("64x96 s5"),
    makeShape<T, LinearShape<Sharing::kROWS, 64, 128, 2, 4, 1>>("64x128"),
    makeShape<T, LinearShape<Sharing::kROWS, 64, 192, 2, 3, 1>>("64x192"),
    makeShape<T, LinearShape<Sharing::kROWS, 64, 192, 1, 6, 1>>("64x192 p1"),
    makeShape<T, LinearShape<Sharing::kROWS, 128, 96, 2, 4>>("128x96"),
    makeShape<T, LinearShape<Sharing::kROWS, 128, 144, 1, 4>>("128x144"),
    makeShape<T, LinearShape<Sharing::kROWS, 128, 128, 1, 5, 2>>("128x128"),
    makeShape<T, LinearShape<Sharing::kROWS, 128, 192, 1, 4, 3>>("128x192"),
    makeShape<T, LinearShape<Sharing::kROWS, 192, 96, 1, 5>>("192x96"),
    makeShape<T, LinearShape<Sharing::kROWS, 192, 128, 1, 4, 2>>("192x128"),
    makeShape<T, LinearShape<Sharing::kROWS, 192, 192, 1, 4, 1>>("192x192"),
    makeShape<T, LinearShape<Sharing::kROWS, 128, 256, 1, 3, 4>>("128x256"),
    makeShape<T, LinearShape<Sharing::kTILES, 128, 128, 1, 6, 1>>("128x128 pp"),
    makeShape<T, LinearShape<Sharing::kTILES, 128, 192, 1, 5, 1>>("128x192 pp"),
    makeShape<T, LinearShape<Sharing::kTILES, 192, 128, 1, 5, 1>>("192x128 pp"),
    makeShape<T, LinearShape<Sharing::kTILES, 64, 256, 1, 5, 1>>("64x256 pp"),
    makeShape<T, LinearShape<Sharing::kTILES, 64, 256, 1, 5, 1, 2>>("64x256 pp m2"),
    makeShape<T, LinearShape<Sharing::kSPLIT_K, 64, 64, 2, 5, 0, 1, 6>>("64x64 split"),
    makeShape<T, LinearShape<Sharing::kSPLIT_K, 128, 96, 2, 4, 0, 1, 4>>("128x96 split"),
    makeShape<T, LinearShape<Sharing::kSPLIT_K, 128, 128, 1, 6, 0, 1, 4>>("128x128 split"),
    makeShape<T, LinearShape<Sharing::kSPLIT_K, 128, 192, 1, 5, 0, 1, 4>>("128x192 split"),
    makeShape<T, LinearShape<Sharing::kSPLIT_K, 192, 128, 1, 5, 0, 1, 4>>("192x128 split"),
};

template <typename T>
LinearHopperShapes listShapes()
{
    return {kSHAPES<T>, static_cast<int32_t>(std::size(kSHAPES<T>))};
}

} // namespace bert
