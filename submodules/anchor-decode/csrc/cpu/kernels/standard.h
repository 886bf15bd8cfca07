// Every standard header that the kernels use. v3.cpp and v4.cpp include it before they raise the instruction set: so
// functions that the linker may share between the variants and with the rest of the process are compiled for any CPU,
// while the kernels may still inline them. Include nothing else in kernels/.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
