#pragma once

#include "varattn/varattn.hpp"

namespace varattn::portable {

// Launches the instance that serves params.config on the stream. The params are checked.
void launch(const AttentionParams& params, cudaStream_t stream);

// One instance, in a file of its own: instances/.
template <class T, int kDim>
void launch_instance(const AttentionParams& params, cudaStream_t stream);

}  // namespace varattn::portable
