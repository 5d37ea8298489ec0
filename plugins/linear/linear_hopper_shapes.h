// The shapes of tile that the linear layer has on Hopper, for linear_hopper.cu, which chooses among them.
#pragma once

#include "linear/linear_kernels.h"

namespace bert
{

struct LinearHopperShape
{
    char const* name;
    cudaError_t (*launch)(LinearArguments const&, int32_t splits, int multiprocessors, cudaStream_t);
    int32_t rows; // of a tile
    int32_t columns;
    int32_t depth;      // elements of k in a pipeline stage
    int32_t multiple;   // k must be one of it
    int32_t mostSplits; // 1: never split-K, else 2 to that many blocks
    int32_t blockRows;  // of a cluster, where each block has a tile of its own
    int32_t blockColumns;
};

struct LinearHopperShapes
{
    LinearHopperShape const* shapes;
    int32_t count;
};

// The same shapes for every type, in the same order; compiled in files of their own.
LinearHopperShapes linearHopperShapesHalf();
LinearHopperShapes linearHopperShapesBf16();
LinearHopperShapes linearHopperShapesE4m3();
LinearHopperShapes linearHopperShapesInt8();

} // namespace bert
