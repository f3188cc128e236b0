#include "sm90/launch_instance.cuh"

template void varattn::sm90::launch_instance<__half, 128, false>(const LaunchParams&, cudaStream_t);
