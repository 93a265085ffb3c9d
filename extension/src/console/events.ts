/** Events of the lab over Jupyter's event bus: one WebSocket for all consoles of a page. */
import type { Events, LabEvent } from './types';
import { backoff } from './link';
import { onWake } from './wake';

/** The schema that vmlab's server sends its notices by. */
const SCHEMA = 'urn:vmlab:events:lab:v1';

class Bus implements Events {
  private readonly _listeners = new Set<(event: LabEvent) => void>();
  private _socket: WebSocket | null = null;
  private _timer: ReturnType<typeof setTimeout> | undefined;
  private _attempt = 0;
  private _missed = false;
  private _asleep: (() => void) | null = null;

  constructor(private readonly _url: string) {}

  subscribe(listener: (event: LabEvent) => void): () => void {
    this._listeners.add(listener);
    if (this._listeners.size === 1) {
      this._missed = false;
      this._asleep = onWake(slept => this._woke(slept));
      this._open();
    }
    return () => {
      this._listeners.delete(listener);
      if (this._listeners.size === 0) {
        this._asleep?.();
        this._close();
      }
    };
  }

  private _tell(event: LabEvent): void {
    for (const listener of [...this._listeners]) {
      listener(event);
    }
  }

  private _open(): void {
    this._close();
    const socket = new WebSocket(this._url);
    this._socket = socket;
    socket.addEventListener('open', () => {
      this._attempt = 0;
      if (this._missed) {
        // Whatever happened while there was no connection was not told.
        this._tell({ kind: 'reload' });
      }
    });
    socket.addEventListener('message', message => {
      let event: LabEvent & { schema_id?: string };
      try {
        event = JSON.parse(String(message.data)) as LabEvent & { schema_id?: string };
      } catch {
        return; // not one of ours
      }
      if (event.schema_id === SCHEMA) {
        this._tell(event);
      }
    });
    socket.addEventListener('close', () => {
      if (this._socket === socket) {
        this._missed = true;
        this._timer = setTimeout(() => this._open(), backoff(this._attempt++, Math.random()));
      }
    });
  }

  private _close(): void {
    clearTimeout(this._timer);
    const socket = this._socket;
    this._socket = null;
    socket?.close();
  }

  private _woke(slept: boolean): void {
    if (slept || this._socket?.readyState === WebSocket.CLOSED) {
      this._missed = true;
      this._attempt = 0;
      this._open();
    }
  }
}

const buses = new Map<string, Bus>();

/** The events of the Jupyter server whose base URL this is. */
export function serverEvents(baseUrl: string): Events {
  const url = new URL(`${baseUrl}api/events/subscribe`, location.href);
  url.protocol = url.protocol.replace('http', 'ws');
  let bus = buses.get(url.href);
  if (!bus) {
    bus = new Bus(url.href);
    buses.set(url.href, bus);
  }
  return bus;
}
