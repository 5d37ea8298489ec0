// The list of shapes, for any type.
#pragma once

#include "linear/linear_hopper.cuh"
#include "linear/linear_hopper_shapes.h"

#include <iterator>

namespace bert
{

template <typename T, typename Shape>
cudaError_t launchForOutput(
    LinearArguments const& a, int32_t splits, int multiprocessors, cudaStream_t stream)
{
    if constexpr (sizeof(T) == 2)
    {
        return launchShape<T, T, Shape>(a, splits, multiprocessors, stream);
    }
    else
    {
        switch (a.outputType)
        {
        case ElementType::kHALF:
            return launchShape<T, __half, Shape>(a, splits, multiprocessors, stream);
        case ElementType::kBF16:
            return launchShape<T, __nv_bfloat16, Shape>(a, splits, multiprocessors, stream);
        default:
            return launchShape<T, T, Shape>(a, splits, multiprocessors, stream);
        }
    }
}

template <typename T, typename Shape>
constexpr LinearHopperShape makeShape(char const* name)
{
    return {name, launchForOutput<T, Shape>, Shape::kROWS, Shape::kCOLUMNS, Shape::kPANELS * kPANEL<T>,
        Shape::kPANELS == 1 ? 1 : kPANEL<T>, Shape::kSPLITS, Shape::kBLOCK_ROWS, Shape::kBLOCK_COLUMNS};
}

// Small tiles have many panels of k on their way, in stages of one panel or, where k is short, of two. The first shapes
// of 128 rows and more are for one or two tiles a multiprocessor: their widths and heights are what makes as many tiles as
// there are multiprocessors of BERT's matrices with 128 to 4096 rows. Those with W first are for the numbers of rows between.
// The last ones hide their epilogues, for many tiles.
template <typename T>
constexpr LinearHopperShape kSHAPES[] = {
    makeShape<T, LinearShape<Sharing::kSPLIT_K, First::kX, 64, 64, 2, 5, 0, 1, 1, 6>>("64x64 split"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 64, 64, 2, 6, 1>>("64x64"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 64, 96, 2, 5>>("64x96"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 64, 128, 1, 8, 1>>("64x128"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 128, 96, 1, 7>>("128x96"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 128, 128, 1, 5, 2>>("128x128"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 128, 128, 1, 5, 2, 1, 2>>("128x128, multicast"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 128, 192, 1, 4, 3>>("128x192"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 128, 256, 1, 3, 4>>("128x256"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 192, 96, 1, 5, 0, 1, 2>>("192x96, multicast"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 192, 128, 1, 4, 2>>("192x128"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kX, 192, 192, 1, 4, 1>>("192x192"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 96, 128, 1, 7, 1>>("96x128, W first"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 96, 128, 1, 7, 1, 1, 2>>(
        "96x128, W first, multicast"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 160, 128, 1, 5, 2>>("160x128, W first"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 208, 128, 1, 4, 2>>("208x128, W first"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 144, 192, 1, 4, 1>>("144x192, W first"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 112, 256, 1, 4, 2>>("112x256, W first"),
    makeShape<T, LinearShape<Sharing::kROWS, First::kWEIGHT, 160, 256, 1, 3, 2>>("160x256, W first"),
    makeShape<T, LinearShape<Sharing::kTILES, First::kX, 128, 128, 1, 6, 1>>("128x128 in turn"),
    makeShape<T, LinearShape<Sharing::kTILES, First::kX, 128, 192, 1, 5, 1>>("128x192 in turn"),
    makeShape<T, LinearShape<Sharing::kTILES, First::kX, 64, 256, 1, 5, 1>>("64x256 in turn"),
    makeShape<T, LinearShape<Sharing::kTILES, First::kWEIGHT, 176, 128, 1, 5, 1>>("176x128 in turn, W first"),
};

template <typename T>
LinearHopperShapes listShapes()
{
    return {kSHAPES<T>, static_cast<int32_t>(std::size(kSHAPES<T>))};
}

} // namespace bert
