#include "sm90/launch.cuh"

namespace varattn::sm90 {

void launch_fp16_d256(const LaunchParams& params, cudaStream_t stream) {
    launch_instance<Config<__half, 256>>(params, stream);
}

}  // namespace varattn::sm90
