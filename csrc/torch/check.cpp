#include "torch/check.h"

#include <cmath>
#include <limits>

#include "core/check.h"

namespace varattn::binding {
namespace {

std::string in_parentheses(const int64_t* values, int64_t count) {
    std::string text = "(";
    for (int64_t i = 0; i < count; ++i)
        text += (i ? ", " : "") + (values[i] < 0 ? "*" : std::to_string(values[i]));
    return text + (count == 1 ? ",)" : ")");
}

std::string strides_of(const Tensor& t) { return "strides " + in_parentheses(t.strides().data(), t.dim()); }

}  // namespace

void refuse(const char* function, const char* name, const std::string& got, const std::string& takes) {
    fail(ErrorCode::kInvalidArgument, function, name, got, takes);
}

std::string shape_of(const Tensor& t) { return "shape " + in_parentheses(t.sizes().data(), t.dim()); }

std::string device_of(const Tensor& t) {
    if (t.is_cpu()) return "cpu";
    return (t.is_cuda() ? "cuda:" : "device:") + std::to_string(t.get_device_index());
}

const char* name_of(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float: return "float32";
        case ScalarType::Half: return "float16";
        case ScalarType::BFloat16: return "bfloat16";
        case ScalarType::Double: return "float64";
        case ScalarType::Int: return "int32";
        case ScalarType::Long: return "int64";
        case ScalarType::Byte: return "uint8";
        default: return torch::headeronly::toString(dtype);
    }
}

void check_device(const Arg& a, const Tensor& like, const char* like_name) {
    if (a.tensor.is_cuda() == like.is_cuda() && a.tensor.is_cpu() == like.is_cpu() &&
        a.tensor.get_device_index() == like.get_device_index())
        return;
    refuse(a, "a tensor on " + device_of(a.tensor),
           "one on the device of " + std::string(like_name) + ", " + device_of(like));
}

void check_dtype(const Arg& a, ScalarType dtype, const char* why) {
    if (a.tensor.scalar_type() == dtype) return;
    refuse(a, name_of(a.tensor.scalar_type()), std::string(name_of(dtype)) + why);
}

void check_rank(const Arg& a, int64_t rank, const char* layout) {
    if (a.tensor.dim() != rank) refuse(a, shape_of(a.tensor), layout);
}

void check_shape(const Arg& a, std::initializer_list<int64_t> shape, const char* layout) {
    bool same = a.tensor.dim() == static_cast<int64_t>(shape.size());
    int64_t dim = 0;
    for (int64_t size : shape) {
        same = same && (size < 0 || a.tensor.size(dim) == size);
        ++dim;
    }
    if (same) return;
    refuse(a, shape_of(a.tensor),
           std::string(layout) + " = " + in_parentheses(shape.begin(), static_cast<int64_t>(shape.size())));
}

void check_fits_int32(const Arg& a) {
    for (int64_t size : a.tensor.sizes())
        if (size > std::numeric_limits<int32_t>::max()) refuse(a, shape_of(a.tensor), "sizes below 2**31 in each dim");
}

void check_last_dim_contiguous(const Arg& a) {
    int64_t last = a.tensor.dim() - 1;
    if (a.tensor.size(last) > 1 && a.tensor.stride(last) != 1)
        refuse(a, strides_of(a.tensor), "a last dim of stride 1");
}

void check_aligned(const Arg& a) {
    if (!a.tensor.is_cuda() || a.tensor.numel() == 0) return;
    if (reinterpret_cast<uintptr_t>(a.tensor.data_ptr()) % 16 != 0)
        refuse(a, "storage offset " + std::to_string(a.tensor.storage_offset()),
               "an address that is a multiple of 16 bytes");
    int64_t element_size = static_cast<int64_t>(a.tensor.element_size());
    for (int64_t dim = 0; dim + 1 < a.tensor.dim(); ++dim)
        if (a.tensor.size(dim) > 1 && a.tensor.stride(dim) * element_size % 16 != 0)
            refuse(a, strides_of(a.tensor), "strides that are multiples of 16 bytes, but the last");
}

void check_no_overlap(const Arg& a) {
    // Dims from the innermost outwards: each stride must step over all that the inner dims reach.
    int64_t reach = 1;
    bool used[8] = {};
    for (int64_t n = 0; n < a.tensor.dim(); ++n) {
        int64_t inner = -1;
        for (int64_t dim = 0; dim < a.tensor.dim(); ++dim)
            if (!used[dim] && (inner < 0 || stride_of(a.tensor, dim) < stride_of(a.tensor, inner))) inner = dim;
        used[inner] = true;
        if (a.tensor.size(inner) <= 1) continue;
        if (a.tensor.stride(inner) < reach) refuse(a, strides_of(a.tensor), "elements that do not overlap");
        reach += (a.tensor.size(inner) - 1) * a.tensor.stride(inner);
    }
}

void check_index_vector(const Arg& a, const Tensor& like, const char* like_name, int64_t size, const char* layout) {
    check_device(a, like, like_name);
    check_dtype(a, ScalarType::Int, "");
    check_shape(a, {size}, layout);
    check_fits_int32(a);
    check_last_dim_contiguous(a);
}

void check_buffer(const Arg& a, const Tensor& like, const char* like_name, int64_t bytes, const char* size_function) {
    check_device(a, like, like_name);
    check_dtype(a, ScalarType::Byte, "");
    check_rank(a, 1, "(bytes,)");
    check_last_dim_contiguous(a);
    if (a.tensor.numel() < bytes)
        refuse(a, std::to_string(a.tensor.numel()) + " bytes",
               "at least " + std::to_string(bytes) + ", which " + size_function + " gives");
    if (reinterpret_cast<uintptr_t>(a.tensor.data_ptr()) % 16 != 0)
        refuse(a, "storage offset " + std::to_string(a.tensor.storage_offset()),
               "an address that is a multiple of 16 bytes");
}

int32_t to_int32(const char* function, const char* name, int64_t value) {
    if (value < std::numeric_limits<int32_t>::min() || value > std::numeric_limits<int32_t>::max())
        refuse(function, name, std::to_string(value), "a number of 32 bits");
    return static_cast<int32_t>(value);
}

float to_positive_float(const char* function, const char* name, double value, bool zero_too) {
    float x = static_cast<float>(value);
    if (!std::isfinite(x) || x < 0 || (x == 0 && !zero_too))
        refuse(function, name, std::to_string(value),
               zero_too ? "a finite number, 0 or above" : "a finite number above 0");
    return x;
}

DType to_dtype(const char* function, const char* name, ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float: return DType::kFloat32;
        case ScalarType::Half: return DType::kFloat16;
        case ScalarType::BFloat16: return DType::kBFloat16;
        default: refuse(function, name, name_of(dtype), "bfloat16 or float16 (CUDA and CPU) or float32 (CPU)");
    }
}

int64_t stride_of(const Tensor& t, int64_t dim) {
    if (t.size(dim) > 1) return t.stride(dim);
    int64_t packed = 1;
    for (int64_t inner = dim + 1; inner < t.dim(); ++inner)
        packed *= t.size(inner);
    return packed;
}

void* address_of(const Tensor& t) { return t.numel() == 0 ? nullptr : t.data_ptr(); }

}  // namespace varattn::binding
