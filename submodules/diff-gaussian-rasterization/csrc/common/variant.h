// Under which name this file's translation unit compiles what the headers hold.
//
// The kernels are compiled once for each instruction set into one library (cpu/v3.cpp, cpu/v4.cpp). A function or template
// that two of them had under one name would be kept by the linker once, for the wrong CPU perhaps. So everything lies in
// an inline namespace of the variant's name.
#pragma once

#if !defined(DGR_VARIANT)
#define DGR_VARIANT plain
#endif
