package image

const nonblock = 0
