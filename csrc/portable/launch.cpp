#include "portable/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string>

#include "core/kernel_table.h"

namespace varattn::portable {
namespace {

template <class T>
void launch_for(const AttentionParams& params, cudaStream_t stream) {
    switch (params.config.kernel) {
        case kKernelPortableD64: return launch_instance<T, 64>(params, stream);
        case kKernelPortableD128: return launch_instance<T, 128>(params, stream);
        case kKernelPortableD256: return launch_instance<T, 256>(params, stream);
    }
    throw Error(ErrorCode::kInternal,
                "mha_varlen: config.kernel: got " + std::to_string(params.config.kernel) + "; takes a portable kernel");
}

}  // namespace

void launch(const AttentionParams& params, cudaStream_t stream) {
    if (params.config.dtype == static_cast<int32_t>(DType::kBFloat16))
        launch_for<__nv_bfloat16>(params, stream);
    else
        launch_for<__half>(params, stream);
}

}  // namespace varattn::portable
