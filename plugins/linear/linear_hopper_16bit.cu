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
    return listShapes<__nv_bfloat16>();
}

} // namespace bert
