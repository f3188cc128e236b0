// What a launch of the Hopper kernel gets, worked out on the host: tensor maps and derived arguments.
#pragma once

#include "sm90/config.h"

namespace varattn::sm90 {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The params are checked, and have rows of q. `encode`: the driver's, which makes tensor maps.
LaunchParams make_launch_params(const AttentionParams& params, EncodeTiled encode);

}  // namespace varattn::sm90
