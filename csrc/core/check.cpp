#include "core/check.h"

#include <cmath>
#include <cstddef>
#include <cstring>
#include <string_view>

namespace varattn {
namespace {

// The names that messages give to the fields of PlanConfig stand in the order of the struct.
#define VARATTN_FIELD_IS_NAMED(field, name) \
    static_assert(std::string_view(kPlanConfigFields[offsetof(PlanConfig, field) / sizeof(int32_t)]).starts_with(name))
VARATTN_FIELD_IS_NAMED(kernel, "kernel");
VARATTN_FIELD_IS_NAMED(dtype, "dtype");
VARATTN_FIELD_IS_NAMED(num_heads_q, "num_heads_q");
VARATTN_FIELD_IS_NAMED(num_heads_kv, "num_heads_kv");
VARATTN_FIELD_IS_NAMED(head_dim, "head_dim");
VARATTN_FIELD_IS_NAMED(head_dim_v, "head_dim_v");
VARATTN_FIELD_IS_NAMED(tile_rows, "tile_rows");
VARATTN_FIELD_IS_NAMED(tile_rows_decode, "tile_rows_decode");
VARATTN_FIELD_IS_NAMED(block_n, "block_n");
VARATTN_FIELD_IS_NAMED(window_left, "window_size[0]");
VARATTN_FIELD_IS_NAMED(window_right, "window_size[1]");
VARATTN_FIELD_IS_NAMED(num_splits, "num_splits");
VARATTN_FIELD_IS_NAMED(batch_invariant, "batch_invariant");
VARATTN_FIELD_IS_NAMED(num_ctas, "sm_margin (number of CTAs)");
VARATTN_FIELD_IS_NAMED(max_seqs, "max_seqs");
VARATTN_FIELD_IS_NAMED(max_total_q, "max_total_q");
#undef VARATTN_FIELD_IS_NAMED

bool takes_head_dim(const KernelConfig& row, int32_t dim) {
    return dim >= 8 && dim <= row.max_head_dim && dim % 8 == 0;
}

// It runs in every call: words are made only for what is refused.
class ParamCheck {
public:
    ParamCheck(const char* function, bool cuda) : function_(function), cuda_(cuda) {}

    [[noreturn]] void refuse(const char* argument, const std::string& got, const std::string& takes) const {
        fail(ErrorCode::kInvalidArgument, function_, argument, got, takes);
    }
    void require_pointer(const char* argument, const void* pointer, bool needed, size_t alignment) const {
        if (!pointer && needed) refuse(argument, "null", "a pointer");
        if (reinterpret_cast<uintptr_t>(pointer) % alignment != 0)
            refuse(argument, "a pointer that is not aligned",
                   "a pointer to a multiple of " + std::to_string(alignment) + " bytes");
    }
    void require_count(const char* argument, int64_t got, int64_t low) const {
        if (got < low) refuse(argument, std::to_string(got), "at least " + std::to_string(low));
    }
    void require_finite(const char* argument, float got, bool ok, const char* takes) const {
        if (!std::isfinite(got) || !ok) refuse(argument, std::to_string(got), takes);
    }
    // The stride of a dimension of this size: one of size 0 or 1 is never stepped along, whatever its stride.
    void require_stride(const char* argument, int64_t stride, int64_t size, int64_t least, int element_bytes) const {
        if (size <= 1) return;
        require_count(argument, stride, least);
        if (cuda_ && stride * element_bytes % 16 != 0)
            refuse(argument, std::to_string(stride),
                   "a multiple of " + std::to_string(16 / element_bytes) + " elements (16 bytes)");
    }

private:
    const char* function_;
    bool cuda_;
};

}  // namespace

void fail(ErrorCode code, const char* function, const std::string& argument, const std::string& got,
          const std::string& takes) {
    throw Error(code, std::string(function) + ": " + argument + ": got " + got + "; takes " + takes);
}

uint32_t differing_fields(const PlanConfig& a, const PlanConfig& b) {
    int32_t a_words[kPlanConfigWords], b_words[kPlanConfigWords];
    std::memcpy(a_words, &a, sizeof a);
    std::memcpy(b_words, &b, sizeof b);
    uint32_t fields = 0;
    for (int i = 0; i < kPlanConfigWords; ++i)
        fields |= uint32_t{a_words[i] != b_words[i]} << i;
    return fields;
}

const KernelConfig& checked_kernel(const PlanConfig& c, const char* function) {
    const bool known = c.kernel >= 0 && c.kernel < kNumKernels;
    bool valid = known && c.num_heads_kv >= 1 && c.num_heads_q >= c.num_heads_kv && c.num_heads_q <= kMaxHeads &&
                 c.num_heads_q % c.num_heads_kv == 0 && c.num_splits >= 1 && c.num_splits <= kMaxNumSplits &&
                 c.window_left >= -1 && c.window_left < kMaxLength && c.window_right >= -1 &&
                 c.window_right < kMaxLength && (c.batch_invariant == 0 || c.batch_invariant == 1) && c.num_ctas >= 1 &&
                 c.max_seqs >= 0 && c.max_seqs <= kMaxSeqs && c.max_total_q >= 0;
    if (valid) {
        const KernelConfig& k = kKernelTable[c.kernel];
        valid = c.dtype >= 0 && c.dtype <= static_cast<int32_t>(DType::kBFloat16) &&
                takes_dtype(k, static_cast<DType>(c.dtype)) && takes_head_dim(k, c.head_dim) &&
                takes_head_dim(k, c.head_dim_v) && c.num_ctas <= kMaxSms * k.ctas_per_sm &&
                (!folds_segments(c) || k.folds_segments) && group_size(c) <= k.max_group &&
                c.tile_rows == k.tile_rows && c.tile_rows_decode == k.tile_rows_decode && c.block_n == k.block_n &&
                c.max_total_q <= kMaxPackedRows / group_size(c) && max_tasks(c) <= kMaxTasks;
    }
    if (!valid)
        fail(ErrorCode::kInvalidArgument, function, "config", "a PlanConfig that this library did not make",
             "what make_plan_config returned");
    return kKernelTable[c.kernel];
}

namespace {

const KernelConfig& kernel_on_device(const PlanConfig& config, DeviceType device, const char* function) {
    const KernelConfig& kernel = checked_kernel(config, function);
    if (kernel.device != device)
        fail(ErrorCode::kInvalidArgument, function, "config", std::string("one made for the kernel ") + kernel.name,
             device == DeviceType::kCpu ? "a config made for the CPU" : "a config made for a CUDA device");
    return kernel;
}

}  // namespace

const KernelConfig& check_plan_arguments(const PlanConfig& config, const SequenceLengths& lengths, const void* plan,
                                         DeviceType device, const char* function) {
    const KernelConfig& kernel = kernel_on_device(config, device, function);
    const ParamCheck check(function, false);
    check.require_pointer("plan", plan, true, 16);
    check.require_pointer("cu_seqlens_q", lengths.cu_seqlens_q, config.max_seqs > 0, 4);
    check.require_pointer("seqused_k", lengths.seqused_k, false, 4);
    check.require_pointer("cu_seqlens_k", lengths.cu_seqlens_k, false, 4);
    if (!lengths.seqused_k && !lengths.cu_seqlens_k && config.max_seqs > 0)
        check.refuse("seqused_k", "null", "the number of keys of each sequence, or null together with cu_seqlens_k");
    return kernel;
}

const KernelConfig& check_attention_params(const AttentionParams& p, DeviceType device, const char* function) {
    const PlanConfig& c = p.config;
    const KernelConfig& kernel = kernel_on_device(c, device, function);
    const bool cuda = device == DeviceType::kCuda;
    const bool paged = p.block_table != nullptr;
    const int bytes = dtype_bytes(static_cast<DType>(c.dtype));
    const size_t alignment = cuda ? 16 : bytes;
    const ParamCheck check(function, cuda);

    check.require_count("total_q", p.total_q, 0);
    if (p.total_q > c.max_total_q)
        check.refuse("total_q", std::to_string(p.total_q),
                     "at most max_total_q = " + std::to_string(c.max_total_q) + " of the plan");
    if (paged) {
        check.require_count("num_pages", p.num_pages, 0);
        check.require_count("page_size", p.page_size, 1);
        check.require_count("max_pages_per_seq", p.max_pages_per_seq, 0);
        check.require_pointer("block_table", p.block_table, true, 4);
        if (c.max_seqs > 1) check.require_count("block_table_stride", p.block_table_stride, 0);
    } else {
        if (p.page_size != 0)
            check.refuse("block_table", "null, with page_size " + std::to_string(p.page_size),
                         "a pointer when keys are paged");
        check.require_count("total_k", p.total_k, 0);
    }
    const int64_t keys = paged ? p.num_pages : p.total_k;
    check.require_pointer("q", p.q, p.total_q > 0, alignment);
    check.require_pointer("k", p.k, keys > 0, alignment);
    check.require_pointer("v", p.v, keys > 0, alignment);
    check.require_pointer("out", p.out, p.total_q > 0, alignment);
    check.require_pointer("lse", p.lse, false, 4);
    check.require_pointer("sinks", p.sinks, false, 4);
    check.require_pointer("plan", p.plan, true, 16);
    check.require_pointer("workspace", p.workspace, true, 16);
    check.require_pointer("trace", p.trace, false, 16);
    if (p.trace) check.require_count("trace_capacity", p.trace_capacity, 0);

    const int64_t rows = paged ? p.page_size : p.total_k;
    const int64_t heads_q = p.total_q > 0 ? c.num_heads_q : 0, heads_kv = keys > 0 ? c.num_heads_kv : 0;
    check.require_stride("q_row_stride", p.q_row_stride, p.total_q, 0, bytes);
    check.require_stride("q_head_stride", p.q_head_stride, heads_q, 0, bytes);
    check.require_stride("k_page_stride", p.k_page_stride, p.num_pages, 0, bytes);
    check.require_stride("k_row_stride", p.k_row_stride, rows, 0, bytes);
    check.require_stride("k_head_stride", p.k_head_stride, heads_kv, 0, bytes);
    check.require_stride("v_page_stride", p.v_page_stride, p.num_pages, 0, bytes);
    check.require_stride("v_row_stride", p.v_row_stride, rows, 0, bytes);
    check.require_stride("v_head_stride", p.v_head_stride, heads_kv, 0, bytes);
    // Outputs must not overlap.
    check.require_stride("out_row_stride", p.out_row_stride, p.total_q, c.head_dim_v, bytes);
    check.require_stride("out_head_stride", p.out_head_stride, heads_q, c.head_dim_v, bytes);
    if (p.lse && heads_q > 1) check.require_count("lse_head_stride", p.lse_head_stride, p.total_q);

    check.require_finite("softmax_scale", p.softmax_scale, p.softmax_scale > 0, "a finite number above 0");
    check.require_finite("softcap", p.softcap, p.softcap >= 0, "a finite number, not negative");
    return kernel;
}

AttentionParams with_keys_that_exist(AttentionParams params) {
    if (params.num_pages == 0) params.max_pages_per_seq = 0;
    return params;
}

}  // namespace varattn
