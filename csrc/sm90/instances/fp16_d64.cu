#include "sm90/launch.cuh"

namespace varattn::sm90 {

void launch_fp16_d64(const LaunchParams& params, cudaStream_t stream) {
    launch_instance<Config<__half, 64>>(params, stream);
}

}  // namespace varattn::sm90
