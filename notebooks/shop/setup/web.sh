#!/bin/sh -e
ip route add default via 10.2.0.1
httpd -h /srv
