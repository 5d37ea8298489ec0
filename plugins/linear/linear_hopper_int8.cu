// The kernels of linear_hopper.cuh for int8.
#include "linear/linear_hopper_shapes.cuh"

namespace bert
{

LinearHopperShapes linearHopperShapesInt8()
{
    return listShapes<int8_t>();
}

} // namespace bert
