#include "portable/launch_instance.cuh"

template void varattn::portable::launch_instance<__nv_bfloat16, 128>(const AttentionParams&, cudaStream_t);
