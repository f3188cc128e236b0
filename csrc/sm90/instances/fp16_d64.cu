#include "sm90/launch_instance.cuh"

template void varattn::sm90::launch_instance<__half, 64, false>(const LaunchParams&, cudaStream_t);
