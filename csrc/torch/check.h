// Checks of tensor arguments. Every refusal names the function, the argument, what it got and what it takes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "varattn/types.h"

namespace varattn::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An argument of an op, as the checks see it.
struct Arg {
    const char* function;
    const char* name;
    const Tensor& tensor;
};

[[noreturn]] void refuse(const char* function, const char* name, const std::string& got, const std::string& takes);
[[noreturn]] inline void refuse(const Arg& a, const std::string& got, const std::string& takes) {
    refuse(a.function, a.name, got, takes);
}

std::string shape_of(const Tensor& t);
std::string device_of(const Tensor& t);
const char* name_of(ScalarType dtype);

void check_device(const Arg& a, const Tensor& like, const char* like_name);
void check_dtype(const Arg& a, ScalarType dtype, const char* why);
void check_rank(const Arg& a, int64_t rank, const char* layout);
// Exactly this shape; -1 takes any size. `layout` is the shape in words.
void check_shape(const Arg& a, std::initializer_list<int64_t> shape, const char* layout);
void check_fits_int32(const Arg& a);
void check_last_dim_contiguous(const Arg& a);
// CUDA kernels read and write 16 bytes at a time: the address and every stride in use must be a multiple of that.
void check_aligned(const Arg& a);
// An output that has two elements at one address would be a race.
void check_no_overlap(const Arg& a);
// int32, on the device of `like`, contiguous, one-dimensional.
void check_index_vector(const Arg& a, const Tensor& like, const char* like_name, int64_t size, const char* layout);
// uint8, on the device of `like`, contiguous, 16-byte aligned, at least the `bytes` that size_function gives.
void check_buffer(const Arg& a, const Tensor& like, const char* like_name, int64_t bytes, const char* size_function);

int32_t to_int32(const char* function, const char* name, int64_t value);
float to_positive_float(const char* function, const char* name, double value, bool zero_too);
DType to_dtype(const char* function, const char* name, ScalarType dtype);

// The stride of a dim. Dims of size 1 may carry any stride in PyTorch: they get the one of a packed tensor.
int64_t stride_of(const Tensor& t, int64_t dim);

// Base address, or null where there is no element.
void* address_of(const Tensor& t);

}  // namespace varattn::binding
