#include "portable/launch_instance.cuh"

template void varattn::portable::launch_instance<__half, 256>(const AttentionParams&, cudaStream_t);
