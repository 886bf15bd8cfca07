// The namespace in which a translation unit compiles the contents of the headers.
//
// The kernels are compiled once for each instruction set into one library (cpu/v3.cpp, cpu/v4.cpp). If two of
// them had a function or template of the same name, the linker would keep only one, perhaps for the wrong CPU. So
// everything is in an inline namespace with the variant's name.
#pragma once

#if !defined(DGR_VARIANT)
#define DGR_VARIANT plain
#endif
