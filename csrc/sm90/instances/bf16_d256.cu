#include "sm90/launch_instance.cuh"

template void varattn::sm90::launch_instance<__nv_bfloat16, 256, false>(const LaunchParams&, cudaStream_t);
