// Every check of arguments, once, for CPU and CUDA entry points.
#pragma once

#include <string>

#include "core/kernel_table.h"
#include "core/schedule.h"
#include "varattn/params.h"
#include "varattn/types.h"

namespace varattn {

// Throws Error(code, "function: argument: got G; takes T").
[[noreturn]] void fail(ErrorCode code, const char* function, const std::string& argument, const std::string& got,
                       const std::string& takes);

// The kernel table's row of a config. Throws unless the config is one that make_plan_config can return.
const KernelConfig& checked_kernel(const PlanConfig& config, const char* function);

// Bit i: word i of the two configs differs.
uint32_t differing_fields(const PlanConfig& a, const PlanConfig& b);

// What a planner entry point takes: a config of this type of device, and no null pointer.
const KernelConfig& check_plan_arguments(const PlanConfig& config, const SequenceLengths& lengths, const void* plan,
                                         DeviceType device, const char* function);

// What an attention entry point takes. Reads the params alone: nothing that a pointer leads to.
const KernelConfig& check_attention_params(const AttentionParams& params, DeviceType device,
                                           const char* function = "mha_varlen");

// A cache without a page holds no key, whatever the block table says.
AttentionParams with_keys_that_exist(AttentionParams params);

}  // namespace varattn
