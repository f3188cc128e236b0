#include "cuda/device_info.h"

#include <mutex>
#include <vector>

namespace varattn {
namespace {

struct KnownDevice {
    Device device;
    std::string name;
};

const KnownDevice& known_device(int32_t index) {
    static std::mutex mutex;
    static std::vector<KnownDevice> known;
    std::lock_guard lock(mutex);
    if (known.empty()) {
        int count = 0;
        check_cuda(cudaGetDeviceCount(&count), "cuda_device", "cudaGetDeviceCount");
        known.resize(count);
    }
    if (index < 0 || index >= static_cast<int32_t>(known.size()))
        throw Error(ErrorCode::kInvalidArgument, "cuda_device: device_index: got " + std::to_string(index) +
                                                     "; takes 0 up to the number of devices, " +
                                                     std::to_string(known.size()));
    KnownDevice& it = known[index];
    if (it.name.empty()) {
        cudaDeviceProp properties;
        check_cuda(cudaGetDeviceProperties(&properties, index), "cuda_device", "cudaGetDeviceProperties");
        it = {{DeviceType::kCuda, properties.major * 10 + properties.minor, properties.multiProcessorCount},
              properties.name};
    }
    return it;
}

}  // namespace

Device cuda_device(int32_t device_index) { return known_device(device_index).device; }

const std::string& cuda_device_name(int32_t device_index) { return known_device(device_index).name; }

}  // namespace varattn
