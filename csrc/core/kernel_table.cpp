#include "core/kernel_table.h"

#include <cstdlib>
#include <string>
#include <string_view>

namespace varattn {
namespace {

// VARATTN_KERNEL=<prefix>: only CUDA kernels whose name starts with it are used (to test one on a device that would get
// a better one). Read once, so that every plan and launch of a process agrees.
bool is_enabled(const KernelConfig& row) {
    static const std::string prefix = [] {
        const char* value = std::getenv("VARATTN_KERNEL");
        return std::string(value ? value : "");
    }();
    return row.device == DeviceType::kCpu || std::string_view(row.name).starts_with(prefix);
}

}  // namespace

bool takes_device(const KernelConfig& row, const Device& device) {
    return row.device == device.type && device.compute_capability >= row.min_compute_capability &&
           device.compute_capability < row.max_compute_capability && is_enabled(row);
}

bool takes_dtype(const KernelConfig& row, DType dtype) {
    return dtype == DType::kFloat32 ? row.takes_float32 : row.takes_16bit;
}

const KernelConfig* find_kernel(const Device& device, DType dtype, int32_t group, int32_t head_dim,
                                int32_t head_dim_v) {
    for (const KernelConfig& row : kKernelTable)
        if (takes_device(row, device) && takes_dtype(row, dtype) && group <= row.max_group &&
            head_dim <= row.max_head_dim && head_dim_v <= row.max_head_dim)
            return &row;
    return nullptr;
}

}  // namespace varattn
