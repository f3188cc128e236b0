// mha_varlen on CUDA: checks, then the kernel that the config names.
#include "core/check.h"
#include "portable/launch.h"
#include "sm90/config.h"
#include "varattn/varattn.hpp"

namespace varattn {

void mha_varlen_cuda(const AttentionParams& given, cudaStream_t stream) {
    check_attention_params(given, DeviceType::kCuda);
    const AttentionParams params = with_keys_that_exist(given);
    switch (params.config.kernel) {
        case kKernelSm90D64:
        case kKernelSm90D128:
        case kKernelSm90D256: return sm90::launch(params, stream);
        case kKernelPortableD64:
        case kKernelPortableD128:
        case kKernelPortableD256: return portable::launch(params, stream);
    }
    throw Error(ErrorCode::kInternal, "mha_varlen: config.kernel: got " + std::to_string(params.config.kernel) +
                                          "; takes a CUDA kernel of this build");
}

}  // namespace varattn
