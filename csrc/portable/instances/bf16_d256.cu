#include "portable/launch_instance.cuh"

template void varattn::portable::launch_instance<__nv_bfloat16, 256>(const AttentionParams&, cudaStream_t);
