// The kernels of linear_hopper.cuh for fp16 and bf16.
#include "linear/linear_hopper_shapes.cuh"

namespace bert
{

LinearHopperShapes linearHopperShapesHalf()
{
    return listShapes<__half>();
}
LinearHopperShapes linearHopperShapesBf16()
{
#ifdef EXPERIMENT
    return {};
#else
    return listShapes<__nv_bfloat16>();
#endif
}

} // namespace bert
