// The constants of 3DGS, in double; each use rounds to its scalar type.
#pragma once

#include "variant.h"

namespace dgr {
inline namespace DGR_VARIANT {

// Variance in px^2 added to the diagonal of the screen covariance: a footprint never falls between pixel centres.
constexpr double kLowPass = 0.3;
// Lower bound of the squared share of its opacity that an antialiased Gaussian keeps: its root has a bounded slope.
constexpr double kMinUnspread = 0.000025;
// Where the Jacobian of the projection is taken, in units of tan(fov/2): farther out the linearization becomes useless.
constexpr double kJacobianMargin = 1.3;
// Size of `radii` in standard deviations.
constexpr double kRadiusSigmas = 3.0;
// Standard deviations within which a Gaussian of opacity 1 reaches 1/255, which is sqrt(2 ln 255) = 3.329, with a
// margin for rounding. This decides what may be visible in a window, and not kRadiusSigmas, which is smaller: a window
// must show all that the same part of the whole image shows.
constexpr double kReachSigmas = 3.34;
// Lower bound of the discriminant in the larger eigenvalue of the screen covariance.
constexpr double kEigenvalueFloor = 0.1;
// Pixels of the square that the culling of `radii` rounds the image up to (the tile of the CUDA original).
constexpr int kCullTile = 16;
// Radii at and above this are culled, Inf among them: beyond any image, and they must fit an int32.
constexpr double kMaxRadius = 1e9;
// Depths at and above this are culled, Inf among them: about the largest float.
constexpr double kMaxDepth = 3.4e38;

// Contributions below one step of an 8-bit image are skipped.
constexpr double kMinAlpha = 1.0 / 255.0;
constexpr double kLog2MinAlpha = -7.994353436858858;
// No Gaussian is fully opaque: 1/(1 - alpha) in the gradient stays bounded.
constexpr double kMaxAlpha = 0.99;
// A pixel is finished when its transmittance would fall under this.
constexpr double kMinTransmittance = 1e-4;
// The median depth of a pixel is that of the Gaussian behind which no more than this share of the light is left.
constexpr double kMedian = 0.5;

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

}  // namespace DGR_VARIANT
}  // namespace dgr
