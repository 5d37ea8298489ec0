// The kernels of linear_hopper.cuh for E4M3.
#include "linear/linear_hopper_shapes.cuh"

namespace bert
{

LinearHopperShapes linearHopperShapesE4m3()
{
    return listShapes<E4m3>();
}

} // namespace bert
