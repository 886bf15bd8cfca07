// The choice between the variants of cpu_variants.h, made once, when a kernel is called for the first time. The file is
// the same in the four extensions.
#pragma once

#include <c10/util/Exception.h>

#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "cpu_variants.h"

namespace {
namespace cpu_variants {

struct Variant {
  std::string name;
  std::vector<std::string> needs;  // as __builtin_cpu_supports names them
};

// The fastest first. `needs` are the features that v3.cpp and v4.cpp enable, not all of the x86-64 level that a variant
// is named after: every compiler can test for these.
inline std::vector<Variant> variants() {
#if defined(CPU_KERNELS_BY_CPU)
  const std::vector<std::string> v3 = {"avx2", "fma", "bmi", "bmi2", "popcnt"};
  std::vector<std::string> v4 = v3;
  v4.insert(v4.end(), {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"});
  return {{"x86-64-v4", v4}, {"x86-64-v3", v3}};
#elif defined(CPU_KERNELS_NATIVE)
  return {{"native", {}}};
#else
  return {{"plain", {}}};
#endif
}

// The features that variants need, this CPU has and the operating system enables; separated by spaces.
inline std::string features() {
  std::string has;
#if defined(CPU_KERNELS_BY_CPU)
#define CPU_VARIANTS_TEST(name) \
  if (__builtin_cpu_supports(name)) has += name " "
  CPU_VARIANTS_TEST("avx2");
  CPU_VARIANTS_TEST("fma");
  CPU_VARIANTS_TEST("bmi");
  CPU_VARIANTS_TEST("bmi2");
  CPU_VARIANTS_TEST("popcnt");
  CPU_VARIANTS_TEST("avx512f");
  CPU_VARIANTS_TEST("avx512cd");
  CPU_VARIANTS_TEST("avx512bw");
  CPU_VARIANTS_TEST("avx512dq");
  CPU_VARIANTS_TEST("avx512vl");
#undef CPU_VARIANTS_TEST
#endif
  return has;
}

// MOMENTUM_GS_CPU, empty if not set.
inline std::string wanted() {
  const char* value = std::getenv("MOMENTUM_GS_CPU");
  return value ? value : "";
}

// Index in variants() of the one to run, given the CPU's features. `wanted`: its name, or the end of it ("v3"); empty:
// the fastest that runs. `who` begins the error message if none does.
inline size_t choose(const char* who, const std::string& has, const std::string& wanted) {
  const std::vector<Variant> all = variants();
  std::string names, lacks;
  for (size_t i = 0; i < all.size(); ++i) {
    names += (names.empty() ? "" : " or ") + all[i].name;
    if (!wanted.empty() && wanted != all[i].name && "x86-64-" + wanted != all[i].name) continue;
    lacks.clear();
    for (const std::string& feature : all[i].needs)
      if ((" " + has + " ").find(" " + feature + " ") == std::string::npos) lacks += (lacks.empty() ? "" : ", ") + feature;
    if (lacks.empty()) return i;
    TORCH_CHECK(wanted.empty(), who, ": MOMENTUM_GS_CPU is ", wanted, ", but this CPU lacks ", lacks, "; unset it");
  }
  TORCH_CHECK(wanted.empty(), who, ": MOMENTUM_GS_CPU is ", wanted, ", but the kernels were built as ", names, "; unset it");
  // The last one needs the fewest features.
  TORCH_CHECK(false, who, ": the kernels for CPUs need AVX2 and FMA (x86-64-v3), and this CPU lacks ", lacks,
              "; take a CPU that has them or a GPU, or build for this one: NATIVE=1 bash scripts/setup.sh");
}

}  // namespace cpu_variants
}  // namespace
