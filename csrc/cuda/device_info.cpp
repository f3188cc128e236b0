#include <mutex>
#include <vector>

#include "cuda/cuda_check.h"
#include "varattn/types.h"

namespace varattn {

Device cuda_device(int32_t device_index) {
    static std::mutex mutex;
    static std::vector<Device> known;
    std::lock_guard lock(mutex);
    if (known.empty()) {
        int count = 0;
        check_cuda(cudaGetDeviceCount(&count), "cuda_device", "cudaGetDeviceCount");
        known.resize(count);
    }
    if (device_index < 0 || device_index >= static_cast<int32_t>(known.size()))
        throw Error(ErrorCode::kInvalidArgument, "cuda_device: device_index: got " + std::to_string(device_index) +
                                                     "; takes 0 up to the number of devices, " +
                                                     std::to_string(known.size()));
    Device& device = known[device_index];
    if (device.num_sms == 0) {
        auto attribute = [&](cudaDeviceAttr name) {
            int value = 0;
            check_cuda(cudaDeviceGetAttribute(&value, name, device_index), "cuda_device", "cudaDeviceGetAttribute");
            return value;
        };
        int major = attribute(cudaDevAttrComputeCapabilityMajor), minor = attribute(cudaDevAttrComputeCapabilityMinor);
        device = {DeviceType::kCuda, major * 10 + minor, attribute(cudaDevAttrMultiProcessorCount)};
    }
    return device;
}

}  // namespace varattn
