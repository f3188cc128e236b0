#include "torch/device.h"

#include <dlfcn.h>

namespace varattn::binding {

Device device_at(bool is_cuda, int32_t index) { return is_cuda ? cuda_device(index) : cpu_device(); }

// The symbol is looked up in the libtorch_cuda.so that PyTorch has loaded, so that one library serves PyTorch with and
// without CUDA.
cudaStream_t current_stream(int32_t device_index) {
    using GetCurrentStream = int32_t (*)(int32_t, void**);
    static const auto get_current_stream = []() -> GetCurrentStream {
        void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
        return library ? reinterpret_cast<GetCurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"))
                       : nullptr;
    }();
    void* stream = nullptr;
    if (!get_current_stream || get_current_stream(device_index, &stream) != 0)
        throw Error(ErrorCode::kCuda, "varattn: PyTorch gives no current CUDA stream of device " +
                                          std::to_string(device_index) + " (is libtorch_cuda.so loaded?)");
    return static_cast<cudaStream_t>(stream);
}

}  // namespace varattn::binding
