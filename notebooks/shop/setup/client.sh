#!/bin/sh -e
ip route add default via 10.1.0.1
