#include "torch/device.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

namespace varattn::binding {

const Device& device_at(bool is_cuda, int32_t index) {
    static const Device cpu = cpu_device();
    if (!is_cuda) return cpu;
    static std::mutex mutex;
    static std::map<int32_t, Device> devices;
    std::lock_guard lock(mutex);
    auto found = devices.find(index);
    if (found == devices.end()) found = devices.emplace(index, cuda_device(index)).first;
    return found->second;
}

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
