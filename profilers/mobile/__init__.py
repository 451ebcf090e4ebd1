"""Mobile runtimes on this machine: ncnn, MNN, LiteRT and ExecuTorch behind one interface, each optional."""
