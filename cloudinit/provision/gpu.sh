# shellcheck shell=bash
# NVIDIA driver, CUDA and cuDNN. DETECT: auto (only where there is such a GPU) or force. BRANCH: the driver branch
# asked for, if any; LEAST: the oldest one that runs this CUDA; INSTALL: the one to install where there is none.
# CUDA: release, empty for none. CUDNN: its package, empty for none. KEY: fingerprint of the key that signs NVIDIA's
# packages.

readonly REPOSITORIES=https://developer.download.nvidia.com/compute/cuda/repos
readonly KEY_FILE=3bf863cc.pub
readonly PREFIX=/usr/local/cuda-$CUDA

gpu_there() {
    if has lspci; then
        [[ -n $(lspci -d 10de:) ]]
    else
        grep -qsx 0x10de /sys/bus/pci/devices/*/vendor
    fi
}

profile() {
    echo "export PATH=$PREFIX/bin\${PATH:+:\$PATH}"
    echo "export LD_LIBRARY_PATH=$PREFIX/lib64\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
}

# The branch of the driver that is loaded.
branch() {
    local version
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || return 1
    echo "${version%%.*}"
}

cuda_there() { [[ -x $PREFIX/bin/nvcc ]] && compgen -G "$PREFIX/lib64/libcudart.so*" >/dev/null; }

cudnn_there() { installed "$CUDNN" || compgen -G "$PREFIX/lib64/libcudnn.so*" >/dev/null; }

check() {
    local found
    if [[ $DETECT == auto ]] && ! gpu_there; then
        echo 'no NVIDIA GPU on the PCI bus' >&2
        return
    fi
    if ! found=$(branch); then
        echo 'no NVIDIA driver is loaded'
    elif [[ -n $BRANCH && $found != "$BRANCH" ]]; then
        refuse "this machine has driver $found, not $BRANCH" \
            'leave out gpu.driver_branch, or choose an image with that driver: one in use is not replaced'
    elif ((found < LEAST)); then
        refuse "this machine has driver $found, and CUDA $CUDA needs $LEAST or newer" \
            'lower gpu.cuda, or choose an image with a newer driver'
    fi
    if [[ -n $CUDA ]]; then
        cuda_there || echo "CUDA $CUDA is not installed"
        has_profile vllm-fleet-cuda "$(profile)" || echo "$PREFIX is not on PATH and LD_LIBRARY_PATH"
    fi
    [[ -z $CUDNN ]] || cudnn_there || echo "$CUDNN is not installed"
}

install_driver() {
    local packages=("nvidia-driver-$INSTALL-server") headers held
    headers=linux-headers-$(uname -r)
    update_lists
    to_be_had "${packages[0]}" || refuse "the package archives of this machine have no ${packages[0]}" \
        'choose another gpu.driver_branch'
    # The module is built for the running kernel; a kernel without such a package brings its headers itself.
    ! to_be_had "$headers" || packages+=("$headers")
    apt_install "${packages[@]}"
    # An upgrade under a running model takes its driver away.
    held=$(dpkg-query --show --showformat='${db:Status-Abbrev}${Package}\n' 'nvidia-*' 'libnvidia-*' \
        2>/dev/null | sed -n 's/^ii *//p') || true
    [[ -z $held ]] || xargs apt-mark hold <<<"$held"
}

# use_repository SYSTEM: NVIDIA's packages for it. Never the driver: that is the distribution's.
use_repository() {
    local repository=$REPOSITORIES/$1/x86_64 key=/etc/apt/keyrings/nvidia-cuda.asc found scratch
    has gpg || apt_install gpg
    mkdir -p /etc/apt/keyrings
    attempt 4 curl --fail --silent --show-error --location --connect-timeout 15 --max-time 60 \
        --output "$key.new" "$repository/$KEY_FILE" ||
        refuse "NVIDIA has no packages for $1" 'set gpu.cuda to null, or choose an image of Ubuntu 22.04 or 24.04'
    scratch=$(mktemp -d)
    found=$(gpg --homedir "$scratch" --batch --show-keys --with-colons "$key.new" |
        sed -n 's/^fpr:*\([^:]*\):.*/\1/p' | head -n 1)
    rm -r "$scratch"
    [[ $found == "$KEY" ]] || refuse "the key of $repository has the fingerprint $found, not $KEY" \
        'correct gpu.key_fingerprint; if NVIDIA has changed its key, it says so'
    mv "$key.new" "$key"
    printf 'Types: deb\nURIs: %s/\nSuites: /\nSigned-By: %s\n' "$repository" "$key" \
        >/etc/apt/sources.list.d/nvidia-cuda.sources
    printf 'Package: %s\nPin: origin developer.download.nvidia.com\nPin-Priority: -1\n' \
        'nvidia-* libnvidia-* cuda-drivers*' >/etc/apt/preferences.d/nvidia-cuda
    update_lists
}

install_cuda() {
    local release=${CUDA/./-} system packages=()
    # shellcheck source=/dev/null
    system=$(. /etc/os-release && echo "$ID${VERSION_ID//./}")
    has curl || { update_lists && apt_install curl ca-certificates; }
    use_repository "$system"
    # Releases before 12.5 were never made for Ubuntu 24.04; those for 22.04 run there.
    to_be_had "cuda-compiler-$release" || use_repository ubuntu2204
    to_be_had "cuda-compiler-$release" || refuse "NVIDIA has no CUDA $CUDA for $system" 'choose another gpu.cuda'
    # Not cuda-toolkit: its graphical tools need libraries that newer systems do not have.
    cuda_there || packages+=("cuda-compiler-$release" "cuda-libraries-dev-$release")
    [[ -z $CUDNN ]] || cudnn_there || packages+=("$CUDNN")
    ((${#packages[@]} == 0)) || apt_install "${packages[@]}"
    write_profile vllm-fleet-cuda "$(profile)"
}

apply() {
    branch >/dev/null || installed "nvidia-driver-$INSTALL-server" || install_driver
    [[ -z $CUDA ]] || install_cuda
    if ! branch >/dev/null; then
        # Where nothing else holds the card, the driver needs no restart.
        modprobe nvidia 2>/dev/null || true
        branch >/dev/null || exit "$REBOOT_NEEDED"
    fi
}
