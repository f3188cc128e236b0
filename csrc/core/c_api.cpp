// The C API: the same PODs under C names, and exceptions turned into codes.
#include "varattn/varattn.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <string>

#include "varattn/varattn.hpp"

using namespace varattn;

static_assert(sizeof(varattn_plan_config) == sizeof(PlanConfig));
static_assert(offsetof(varattn_plan_config, max_total_q) == offsetof(PlanConfig, max_total_q));
static_assert(sizeof(varattn_attention_params) == sizeof(AttentionParams));
static_assert(offsetof(varattn_attention_params, sinks) == offsetof(AttentionParams, sinks));
static_assert(offsetof(varattn_attention_params, block_table_stride) == offsetof(AttentionParams, block_table_stride));
static_assert(offsetof(varattn_attention_params, softmax_scale) == offsetof(AttentionParams, softmax_scale));
static_assert(offsetof(varattn_attention_params, workspace) == offsetof(AttentionParams, workspace));
static_assert(offsetof(varattn_attention_params, trace_capacity) == offsetof(AttentionParams, trace_capacity));
static_assert(VARATTN_PLAN_STATUS_OFFSET == offsetof(PlanHeader, status));

namespace {

thread_local std::string last_error;

template <class Function>
varattn_error_code guarded(const Function& function) noexcept {
    try {
        function();
        return VARATTN_OK;
    } catch (const Error& error) {
        last_error = error.what();
        return static_cast<varattn_error_code>(error.code());
    } catch (const std::exception& error) {
        last_error = error.what();
        return VARATTN_INTERNAL;
    }
}

// The value of a pointer argument.
template <class T>
const T& given(const T* pointer, const char* function, const char* argument) {
    if (!pointer)
        throw Error(ErrorCode::kInvalidArgument,
                    std::string(function) + ": " + argument + ": got null; takes a pointer");
    return *pointer;
}

SequenceLengths to_cpp(const varattn_lengths& l) { return {l.cu_seqlens_q, l.seqused_k, l.cu_seqlens_k}; }

}  // namespace

const char* varattn_last_error(void) { return last_error.c_str(); }
const char* varattn_version(void) { return VARATTN_VERSION; }

varattn_device varattn_cpu_device(void) { return std::bit_cast<varattn_device>(cpu_device()); }

varattn_error_code varattn_cuda_device(int32_t device_index, varattn_device* device) {
    return guarded([&] {
        given(device, "cuda_device", "device");
        *device = std::bit_cast<varattn_device>(cuda_device(device_index));
    });
}

varattn_plan_options varattn_default_options(void) {
    const PlanOptions defaults;
    varattn_plan_options options{};
    options.dtype = static_cast<int32_t>(defaults.dtype);
    options.window_left = defaults.window_left;
    options.window_right = defaults.window_right;
    options.num_splits = defaults.num_splits;
    return options;
}

varattn_error_code varattn_make_plan_config(const varattn_device* device, const varattn_plan_options* options,
                                            varattn_plan_config* config) {
    return guarded([&] {
        const char* function = "make_plan_config";
        const varattn_plan_options& o = given(options, function, "options");
        given(config, function, "config");
        PlanOptions cpp;
        cpp.num_heads_q = o.num_heads_q;
        cpp.num_heads_kv = o.num_heads_kv;
        cpp.head_dim = o.head_dim;
        cpp.head_dim_v = o.head_dim_v;
        cpp.dtype = static_cast<DType>(o.dtype);
        cpp.causal = o.causal != 0;
        cpp.window_left = o.window_left;
        cpp.window_right = o.window_right;
        cpp.num_splits = o.num_splits;
        cpp.batch_invariant = o.batch_invariant != 0;
        cpp.sm_margin = o.sm_margin;
        cpp.max_seqs = o.max_seqs;
        cpp.max_total_q = o.max_total_q;
        *config = std::bit_cast<varattn_plan_config>(
            make_plan_config(std::bit_cast<Device>(given(device, function, "device")), cpp));
    });
}

varattn_error_code varattn_plan_size(const varattn_plan_config* config, int64_t* bytes) {
    return guarded([&] {
        given(bytes, "plan_size", "bytes");
        *bytes = plan_size(std::bit_cast<PlanConfig>(given(config, "plan_size", "config")));
    });
}

varattn_error_code varattn_workspace_size(const varattn_plan_config* config, int64_t* bytes) {
    return guarded([&] {
        given(bytes, "workspace_size", "bytes");
        *bytes = workspace_size(std::bit_cast<PlanConfig>(given(config, "workspace_size", "config")));
    });
}

varattn_error_code varattn_check_plan_config(const varattn_plan_config* plan, const varattn_plan_config* call) {
    return guarded([&] {
        check_plan_config(std::bit_cast<PlanConfig>(given(plan, "check_plan_config", "plan")),
                          std::bit_cast<PlanConfig>(given(call, "check_plan_config", "call")), "check_plan_config");
    });
}

varattn_error_code varattn_make_plan_cpu(const varattn_plan_config* config, const varattn_lengths* lengths,
                                         void* plan) {
    return guarded([&] {
        make_plan_cpu(std::bit_cast<PlanConfig>(given(config, "plan", "config")),
                      to_cpp(given(lengths, "plan", "lengths")), plan);
    });
}

varattn_error_code varattn_make_plan_cuda(const varattn_plan_config* config, const varattn_lengths* lengths, void* plan,
                                          struct CUstream_st* stream) {
    return guarded([&] {
        make_plan_cuda(std::bit_cast<PlanConfig>(given(config, "plan", "config")),
                       to_cpp(given(lengths, "plan", "lengths")), plan, stream);
    });
}

varattn_error_code varattn_mha_varlen_cpu(const varattn_attention_params* params, int32_t num_threads) {
    return guarded(
        [&] { mha_varlen_cpu(std::bit_cast<AttentionParams>(given(params, "mha_varlen", "params")), num_threads); });
}

varattn_error_code varattn_mha_varlen_cuda(const varattn_attention_params* params, struct CUstream_st* stream) {
    return guarded(
        [&] { mha_varlen_cuda(std::bit_cast<AttentionParams>(given(params, "mha_varlen", "params")), stream); });
}

size_t varattn_describe_status(uint32_t status, char* text, size_t capacity) {
    std::string sentences;
    if (guarded([&] { sentences = describe_status(status); }) != VARATTN_OK) return 0;
    if (capacity > 0) {
        const size_t length = std::min(sentences.size(), capacity - 1);
        std::memcpy(text, sentences.data(), length);
        text[length] = 0;
    }
    return sentences.size();
}
