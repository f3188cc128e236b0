// The part of the C++ API that needs no device: configs, sizes, status words, the CPU planner.
#include "varattn/varattn.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "core/check.h"
#include "core/costs.h"
#include "core/host_planner.h"

namespace varattn {
namespace {

std::string device_name(const Device& device) {
    if (device.type == DeviceType::kCpu) return "CPU";
    return "CUDA device of compute capability " + std::to_string(device.compute_capability / 10) + "." +
           std::to_string(device.compute_capability % 10);
}

// The value of a field of a config, as a message gives it.
std::string field_text(const PlanConfig& config, int field) {
    int32_t words[kPlanConfigWords];
    std::memcpy(words, &config, sizeof config);
    const int32_t value = words[field];
    if (field == offsetof(PlanConfig, kernel) / 4 && value >= 0 && value < kNumKernels) return kKernelTable[value].name;
    if (field == offsetof(PlanConfig, dtype) / 4) return dtype_name(static_cast<DType>(value));
    return std::to_string(value);
}

// Collects the checks of one call of make_plan_config. It runs in every call of the operator: words are made only for what
// is refused.
struct Options {
    const Device& device;
    const PlanOptions& given;
    const char* caller;

    [[noreturn]] void refuse(ErrorCode code, const char* argument, const std::string& got,
                             const std::string& takes) const {
        fail(code, caller, argument, got, takes);
    }
    void require_range(const char* argument, int64_t got, int64_t low, int64_t high) const {
        if (got < low || got > high)
            refuse(ErrorCode::kInvalidArgument, argument, std::to_string(got),
                   std::to_string(low) + " to " + std::to_string(high));
    }

    const KernelConfig& choose_kernel(int32_t group, int32_t head_dim_v) const {
        const int32_t head_dim = given.head_dim;
        int32_t max_head_dim = 0;
        bool device_served = false;
        for (const KernelConfig& row : kKernelTable) {
            if (!takes_device(row, device)) continue;
            device_served = true;
            if (takes_dtype(row, given.dtype)) max_head_dim = std::max(max_head_dim, row.max_head_dim);
        }
        if (!device_served)
            refuse(ErrorCode::kUnsupported, "device", device_name(device),
                   "the CPU, or a CUDA device of compute capability 8.0 or newer (environment variable VARATTN_KERNEL "
                   "may exclude it)");
        if (max_head_dim == 0)
            refuse(ErrorCode::kUnsupported, "dtype", dtype_name(given.dtype),
                   "float16 or bfloat16 on a " + device_name(device));
        const auto takes = [&] {
            return "a multiple of 8 up to " + std::to_string(max_head_dim) +
                   (head_dim == 576 ? " (for MLA's 576 and 512, take FlashMLA or FlashInfer)" : "");
        };
        auto require_dim = [&](const char* argument, int32_t got) {
            const bool valid = got >= 8 && got % 8 == 0;
            if (!valid || got > max_head_dim)
                refuse(valid ? ErrorCode::kUnsupported : ErrorCode::kInvalidArgument, argument, std::to_string(got),
                       takes());
        };
        require_dim("head_dim", head_dim);
        require_dim("head_dim_v", head_dim_v);
        const KernelConfig* kernel = find_kernel(device, given.dtype, group, head_dim, head_dim_v);
        if (!kernel)
            refuse(ErrorCode::kUnsupported, "head_dim, head_dim_v",
                   std::to_string(head_dim) + ", " + std::to_string(head_dim_v), takes());
        return *kernel;
    }

    // -1: unbounded. A bound that no sequence can reach is unbounded too.
    int32_t window(const char* argument, int32_t got) const {
        if (got < -1)
            refuse(ErrorCode::kInvalidArgument, argument, std::to_string(got), "a number of keys, or -1 for unbounded");
        return got >= kMaxLength ? -1 : got;
    }
};

}  // namespace

const char* dtype_name(DType dtype) {
    switch (dtype) {
        case DType::kFloat32: return "float32";
        case DType::kFloat16: return "float16";
        case DType::kBFloat16: return "bfloat16";
    }
    return "an unknown dtype";
}

Device cpu_device() { return {DeviceType::kCpu, 0, kCpuWorkers}; }

PlanConfig make_plan_config(const Device& device, const PlanOptions& given, const char* caller) {
    const Options check{device, given, caller};
    const auto dtype = static_cast<int32_t>(given.dtype);
    if (dtype < 0 || dtype > static_cast<int32_t>(DType::kBFloat16))
        check.refuse(ErrorCode::kInvalidArgument, "dtype", std::to_string(dtype),
                     "0 (float32), 1 (float16) or 2 (bfloat16)");
    check.require_range("num_heads_q", given.num_heads_q, 1, kMaxHeads);
    check.require_range("num_heads_kv", given.num_heads_kv, 1, kMaxHeads);
    if (given.num_heads_q % given.num_heads_kv != 0)
        check.refuse(ErrorCode::kInvalidArgument, "num_heads_q", std::to_string(given.num_heads_q),
                     "a multiple of num_heads_kv = " + std::to_string(given.num_heads_kv));
    const int32_t group = given.num_heads_q / given.num_heads_kv;
    const int32_t head_dim_v = given.head_dim_v == 0 ? given.head_dim : given.head_dim_v;
    const KernelConfig& kernel = check.choose_kernel(group, head_dim_v);
    check.require_range("num_splits", given.num_splits, 0, kMaxNumSplits);
    check.require_range("device.num_sms", device.num_sms, 1, kMaxSms);
    check.require_range("sm_margin", given.sm_margin, 0, device.num_sms - 1);
    check.require_range("max_seqs", given.max_seqs, 0, kMaxSeqs);
    check.require_range("max_total_q", given.max_total_q, 0, kMaxPackedRows / group);

    PlanConfig c{};
    c.kernel = kernel.id;
    c.dtype = dtype;
    c.num_heads_q = given.num_heads_q;
    c.num_heads_kv = given.num_heads_kv;
    c.head_dim = given.head_dim;
    c.head_dim_v = head_dim_v;
    c.tile_rows = kernel.tile_rows;
    c.tile_rows_decode = kernel.tile_rows_decode;
    c.block_n = kernel.block_n;
    c.window_left = check.window("window_size[0]", given.window_left);
    c.window_right = check.window("window_size[1]", given.window_right);
    if (given.causal) c.window_right = 0;
    c.batch_invariant = given.batch_invariant;
    const bool never_splits = given.batch_invariant && (given.num_splits == 0 || !kernel.folds_segments);
    c.num_splits = never_splits ? 1 : given.num_splits == 0 ? kDefaultNumSplits : given.num_splits;
    c.num_ctas = (device.num_sms - given.sm_margin) * kernel.ctas_per_sm;
    c.max_seqs = given.max_seqs;
    c.max_total_q = given.max_total_q;
    if (max_tasks(c) > kMaxTasks)
        check.refuse(
            ErrorCode::kInvalidArgument, "max_seqs, max_total_q, num_heads_kv",
            std::to_string(c.max_seqs) + ", " + std::to_string(c.max_total_q) + ", " + std::to_string(c.num_heads_kv),
            "sizes that make at most " + std::to_string(kMaxTasks) + " tiles times num_heads_kv, not " +
                std::to_string(max_tasks(c)));
    return c;
}

const char* kernel_name(const PlanConfig& config) { return checked_kernel(config, "kernel_name").name; }

int64_t plan_size(const PlanConfig& config) {
    checked_kernel(config, "plan_size");
    return plan_layout(config).bytes;
}

int64_t workspace_size(const PlanConfig& config) {
    checked_kernel(config, "workspace_size");
    return workspace_layout(config).bytes;
}

void check_plan_config(const PlanConfig& plan, const PlanConfig& call, const char* caller) {
    const uint32_t fields = differing_fields(plan, call);
    if (fields == 0) return;
    const int field = std::countr_zero(fields);
    fail(ErrorCode::kPlanMismatch, caller, std::string("plan: ") + kPlanConfigFields[field], field_text(plan, field),
         "a plan made for " + field_text(call, field) + ", as the other arguments say");
}

std::string describe_status(uint32_t status) {
    std::string text;
    auto say = [&](const std::string& sentence) { text += (text.empty() ? "" : " ") + sentence; };
    if (status & kStatusCuSeqlensQ)
        say("cu_seqlens_q: an offset was negative, decreasing or past max_total_q; it was clamped.");
    if (status & kStatusCuSeqlensK)
        say("cu_seqlens_k: an offset was negative or decreasing, or a range too long; it was clamped.");
    if (status & kStatusSequsedK)
        say("seqused_k: a length was negative or larger than its range of keys; it was clamped.");
    if (status & kStatusKeysPastEnd)
        say("A sequence has keys past the end of its block_table row, or of k and v; they were treated as absent.");
    if (status & kStatusPageId)
        say("block_table: a page id was outside [0, num_pages); its keys and values were read as zeros.");
    if (status & kStatusRowsPastEnd) say("The plan covers rows past the end of q; they were skipped.");
    if (status & kStatusForeignPlan) {
        std::string fields;
        for (int i = 0; i < kPlanConfigWords; ++i)
            if (status >> (kStatusFirstField + i) & 1)
                fields += (fields.empty() ? "" : ", ") + std::string(kPlanConfigFields[i]);
        say("The plan was made for something else (it differs in: " + fields + "); nothing was computed.");
    }
    if (status & kStatusNotAPlan) say("The plan buffer holds no plan of this version; nothing was computed.");
    return text;
}

void make_plan_cpu(const PlanConfig& config, const SequenceLengths& lengths, void* plan) {
    const KernelConfig& kernel = check_plan_arguments(config, lengths, plan, DeviceType::kCpu, "plan");
    plan_on_host(config, cost_model(kernel.id), lengths, plan);
}

}  // namespace varattn
