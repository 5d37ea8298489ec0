// The kernels of linear_hopper.cuh for E4M3 and int8.
#include "linear/linear_hopper_shapes.cuh"

namespace bert
{

LinearHopperShapes linearHopperShapesE4m3()
{
    return listShapes<E4m3>();
}
LinearHopperShapes linearHopperShapesInt8()
{
#ifdef EXPERIMENT
    return {};
#else
    return listShapes<int8_t>();
#endif
}

} // namespace bert
