// Element types, devices and errors shared by the whole public API. Needs no CUDA header.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

// Names that a shared build of the library exports.
#if defined(VARATTN_SHARED) && defined(__GNUC__)
#define VARATTN_API __attribute__((visibility("default")))
#else
#define VARATTN_API
#endif

namespace varattn {

enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

constexpr int dtype_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
VARATTN_API const char* dtype_name(DType dtype);

enum class DeviceType : int32_t { kCpu = 0, kCuda = 1 };

// What the planner needs to know of a device. `compute_capability` is major * 10 + minor.
struct Device {
    DeviceType type = DeviceType::kCpu;
    int32_t compute_capability = 0;
    int32_t num_sms = 0;  // CPU: worker threads that the plan is balanced for
};

VARATTN_API Device cpu_device();  // kCpuWorkers workers, whatever the machine: plans are reproducible
VARATTN_API Device cuda_device(int32_t device_index);  // throws Error(kUnsupported) in a build without CUDA

enum class ErrorCode : int32_t {
    kOk = 0,
    kInvalidArgument = 1,  // an argument's value, shape, stride or alignment
    kUnsupported = 2,      // valid, but no kernel serves it on this device
    kPlanMismatch = 3,     // the plan was made for something else; the message names the field
    kCuda = 4,             // a CUDA call failed
    kInternal = 5,
};

// The one error of the library. The message names the function, the argument, what it got and what it takes.
class VARATTN_API Error : public std::runtime_error {
public:
    Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
    ErrorCode code() const { return code_; }

private:
    ErrorCode code_;
};

}  // namespace varattn
